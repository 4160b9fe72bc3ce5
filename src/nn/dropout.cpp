#include "nn/dropout.hpp"

#include <algorithm>
#include <span>

#include "core/check.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

KeepBytes drawn_keep(std::int64_t count, const StepDropout& dropout, Generator* generator) {
    if (!dropout.training || dropout.probability == 0) {
        return {};
    }
    if (generator == nullptr) {
        fail(ErrorCode::invalid_argument, "dropout ", dropout.probability,
             " in training needs a Generator in the Pass; give one, or call eval()");
    }
    KeepBytes keep(static_cast<std::size_t>(count));
    if (dropout.probability == 1) {  // PyTorch drops everything without drawing
        std::ranges::fill(keep, std::uint8_t{0});
        return keep;
    }
    generator->bernoulli_(std::span(keep), 1.0 - dropout.probability);
    return keep;
}

namespace {

/// y ← x, dropped; y may be x.
template <class T>
void drop_into(BasicTensor<T>& y, const BasicTensor<T>& x, const KeepBytes& keep, double p, const Runtime& runtime) {
    // As PyTorch's noise tensor: its ones are divided by 1−p, and what is kept is multiplied by the quotient.
    const T scale = T{1} / static_cast<T>(1.0 - p);
    const auto apply = kernels::layers<T>(runtime.instruction_set()).drop;
    for_runs(runtime, x.numel(), 1, [&](std::int64_t begin, std::int64_t end) {
        apply(y.data() + begin, x.data() + begin, keep.data() + begin, end - begin, scale);
    });
}

}  // namespace

template <class T>
void drop(BasicTensor<T>& x, const KeepBytes& keep, double p, const Runtime& runtime) {
    if (!keep.empty()) {
        drop_into(x, x, keep, p, runtime);
    }
}

template <class T>
const BasicTensor<T>& dropped(const BasicTensor<T>& x, const KeepBytes& keep, double p, BasicTensor<T>& room,
                              const Runtime& runtime) {
    if (keep.empty()) {
        return x;
    }
    room = BasicTensor<T>::unwritten(x.shape());
    drop_into(room, x, keep, p, runtime);
    return room;
}

template void drop(BasicTensor<float>&, const KeepBytes&, double, const Runtime&);
template void drop(BasicTensor<double>&, const KeepBytes&, double, const Runtime&);
template const BasicTensor<float>& dropped(const BasicTensor<float>&, const KeepBytes&, double, BasicTensor<float>&,
                                           const Runtime&);
template const BasicTensor<double>& dropped(const BasicTensor<double>&, const KeepBytes&, double, BasicTensor<double>&,
                                            const Runtime&);

}  // namespace qkv::nn
