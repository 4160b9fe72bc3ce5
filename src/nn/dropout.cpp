#include "nn/dropout.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "core/check.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

std::vector<std::uint8_t> drawn_keep(std::int64_t count, const StepDropout& dropout, Generator* generator) {
    if (!dropout.training || dropout.probability == 0) {
        return {};
    }
    if (generator == nullptr) {
        fail(ErrorCode::invalid_argument, "dropout ", dropout.probability,
             " in training needs a Generator in the Pass; give one, or call eval()");
    }
    std::vector<std::uint8_t> keep(static_cast<std::size_t>(count));
    if (dropout.probability == 1) {  // PyTorch drops everything without drawing
        return keep;
    }
    std::array<float, 4096> drawn{};
    for (std::size_t begin = 0; begin < keep.size(); begin += drawn.size()) {
        const std::span<float> part = std::span(drawn).first(std::min(drawn.size(), keep.size() - begin));
        generator->bernoulli_(part, 1.0 - dropout.probability);
        std::ranges::transform(part, keep.begin() + static_cast<std::ptrdiff_t>(begin),
                               [](float value) { return static_cast<std::uint8_t>(value != 0); });
    }
    return keep;
}

template <class T>
void drop(BasicTensor<T>& x, const std::vector<std::uint8_t>& keep, double p, const Runtime& runtime) {
    if (keep.empty()) {
        return;
    }
    // As PyTorch's noise tensor: its ones are divided by 1−p, and what is kept is multiplied by the quotient.
    const T scale = T{1} / static_cast<T>(1.0 - p);
    const auto apply = kernels::layers<T>(runtime.instruction_set()).drop;
    for_runs(runtime, x.numel(), 1, [&](std::int64_t begin, std::int64_t end) {
        apply(x.data() + begin, keep.data() + begin, end - begin, scale);
    });
}

template void drop(BasicTensor<float>&, const std::vector<std::uint8_t>&, double, const Runtime&);
template void drop(BasicTensor<double>&, const std::vector<std::uint8_t>&, double, const Runtime&);

}  // namespace qkv::nn
