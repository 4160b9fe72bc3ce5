// The raw stream and what follows from it by a multiply-add or a comparison: uniform and Bernoulli draws.
//
// The stream is that of std::mt19937, whose libstdc++ form keeps each word in 64 bits and takes four times as long.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/check.hpp"
#include "core/draws.hpp"
#include "core/mersenne_twister.hpp"
#include "qkv/random.hpp"

namespace qkv {
namespace {

constexpr std::size_t kWords = kTwisterWords;

/// Those of the machine's best instruction set. All draw the same, so QKV_ISA is not asked: it might be wrong.
const Draws& verbs() {
    static const Draws& best = []() -> const Draws& {
        for (const InstructionSetInfo& info : instruction_sets()) {
            if (info.available) {
                return draws(info.set);
            }
        }
        return draws(InstructionSet::scalar);
    }();
    return best;
}

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
    return static_cast<double>(generator.random64() & kLow53) * 0x1p-53;
}

}  // namespace

void Generator::manual_seed(std::uint64_t seed) {
    seed_ = seed;
    cached_normal_.reset();
    state_[0] = static_cast<std::uint32_t>(seed);
    for (std::uint32_t i = 1; i < kWords; ++i) {
        state_[i] = 1812433253U * (state_[i - 1] ^ (state_[i - 1] >> 30U)) + i;
    }
    next_ = kWords;
}

void Generator::refill() {
    verbs().refill(state_.data());
    next_ = 0;
}

// The words of the twister, the place among them, the seed and the cached normal as low and high words, and whether
// there is a cached normal.
std::vector<std::uint32_t> Generator::state() const {
    std::vector<std::uint32_t> words(state_.begin(), state_.end());
    words.push_back(static_cast<std::uint32_t>(next_));
    for (const std::uint64_t wide : {seed_, std::bit_cast<std::uint64_t>(cached_normal_.value_or(0.0))}) {
        words.push_back(static_cast<std::uint32_t>(wide));
        words.push_back(static_cast<std::uint32_t>(wide >> 32U));
    }
    words.push_back(cached_normal_ ? 1U : 0U);
    return words;
}

void Generator::set_state(std::span<const std::uint32_t> words) {
    constexpr std::size_t kCount = kWords + 6;
    if (words.size() != kCount) {
        fail(ErrorCode::invalid_argument, "set_state: ", words.size(), " words; expected ", kCount);
    }
    const auto wide = [words](std::size_t at) { return static_cast<std::uint64_t>(words[at + 1]) << 32U | words[at]; };
    const double normal = std::bit_cast<double>(wide(kWords + 3));
    if (words[kWords] > kWords || words.back() > 1 || !std::isfinite(normal)) {
        fail(ErrorCode::invalid_argument, "set_state: the words are no state of a generator");
    }
    std::ranges::copy(words.first(kWords), state_.begin());
    next_ = words[kWords];
    seed_ = wide(kWords + 1);
    cached_normal_ = words.back() == 1 ? std::optional(normal) : std::nullopt;
}

std::uint32_t Generator::random() {
    if (next_ == kWords) {
        refill();
    }
    return tempered(state_[next_++]);
}

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
             "); expected from <= to with from, to and to - from finite in float", 8 * sizeof(T));
    }
    for (T& value : values) {
        // One rounding, as in PyTorch's vector builds; the sum may then reach the excluded end.
        const T scaled = std::fma(unit_uniform<T>(*this), width, low);
        value = scaled == high ? low : scaled;
    }
}

template <class T>
void Generator::bernoulli_(std::span<T> values, double probability) {
    const bool valid = probability >= 0 && probability <= 1;  // NaN is neither
    if (!valid) {
        fail(ErrorCode::invalid_argument, "bernoulli_: probability is ", probability, "; expected 0 to 1");
    }
    // A uniform double u/2⁵³ for every T: u/2⁵³ < p where u < ⌈p·2⁵³⌉. Two words each, in runs, since a training with
    // dropout draws a number for every weight; a pair across a refill on its own.
    const auto limit = static_cast<std::uint64_t>(std::ceil(probability * 0x1p53));
    const auto keep = verbs().keep;
    std::array<std::uint8_t, kWords / 2> kept{};
    for (std::size_t done = 0; done < values.size();) {
        const std::size_t pairs = std::min(values.size() - done, (kWords - next_) / 2);
        keep(kept.data(), state_.data() + next_, static_cast<std::int64_t>(pairs), limit);
        std::copy_n(kept.begin(), pairs, values.begin() + static_cast<std::ptrdiff_t>(done));
        next_ += 2 * pairs;
        done += pairs;
        if (pairs == 0) {
            values[done++] = static_cast<T>((random64() & kLow53) < limit);
        }
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
template void Generator::bernoulli_(std::span<std::uint8_t>, double);
template BasicTensor<float> Generator::rand(Shape);
template BasicTensor<double> Generator::rand(Shape);

}  // namespace qkv
