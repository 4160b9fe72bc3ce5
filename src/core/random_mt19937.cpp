// The raw stream and what follows from it by a multiply-add or a comparison: uniform and Bernoulli draws.
#include <cmath>
#include <utility>

#include "core/check.hpp"
#include "qkv/random.hpp"

namespace qkv {
namespace {

template <class T>
T unit_uniform(Generator& generator);

/// The low 24 of 32 bits: a float holds no more.
template <>
float unit_uniform(Generator& generator) {
    return static_cast<float>(generator.random() & 0xFFFFFFU) * 0x1p-24F;
}

/// The low 53 of 64 bits.
template <>
double unit_uniform(Generator& generator) {
    return static_cast<double>(generator.random64() & 0x1F'FFFF'FFFF'FFFFU) * 0x1p-53;
}

}  // namespace

void Generator::manual_seed(std::uint64_t seed) {
    seed_ = seed;
    engine_.seed(static_cast<std::uint32_t>(seed));
    cached_normal_.reset();
}

std::uint32_t Generator::random() { return static_cast<std::uint32_t>(engine_()); }

std::uint64_t Generator::random64() {
    const std::uint64_t high = random();
    return high << 32U | random();
}

template <class T>
void Generator::uniform_(std::span<T> values, double from, double to) {
    const T low = static_cast<T>(from);
    const T high = static_cast<T>(to);
    const T width = high - low;
    if (!(from <= to) || !std::isfinite(low) || !std::isfinite(high) || !std::isfinite(width)) {
        fail(ErrorCode::invalid_argument, "uniform_: range [", from, ", ", to,
             "); expected from <= to with from, to and to - from finite");
    }
    for (T& value : values) {
        // One rounding, as in PyTorch's vector builds; the sum may then reach the excluded end.
        const T scaled = std::fma(unit_uniform<T>(*this), width, low);
        value = scaled == high ? low : scaled;
    }
}

template <class T>
void Generator::bernoulli_(std::span<T> values, double probability) {
    if (!(probability >= 0 && probability <= 1)) {
        fail(ErrorCode::invalid_argument, "bernoulli_: probability is ", probability, "; expected 0 to 1");
    }
    for (T& value : values) {
        value = unit_uniform<double>(*this) < probability ? T{1} : T{0};  // in double for every T
    }
}

template <class T>
BasicTensor<T> Generator::rand(Shape shape) {
    BasicTensor<T> tensor(std::move(shape));
    uniform_(tensor.values(), 0, 1);
    return tensor;
}

template void Generator::uniform_(std::span<float>, double, double);
template void Generator::uniform_(std::span<double>, double, double);
template void Generator::bernoulli_(std::span<float>, double);
template void Generator::bernoulli_(std::span<double>, double);
template BasicTensor<float> Generator::rand(Shape);
template BasicTensor<double> Generator::rand(Shape);

}  // namespace qkv
