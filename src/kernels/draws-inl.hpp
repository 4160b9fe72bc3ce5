// Plain loops, which the compiler turns into vectors of the instruction set.
#pragma once

#include "core/draws.hpp"
#include "core/mersenne_twister.hpp"
#include "kernels/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

/// In pieces that do not wrap around.
inline void RefillTwister(std::uint32_t* state) {
    constexpr std::size_t kTurn = kTwisterWords - kTwisterMiddle;
    for (std::size_t i = 0; i < kTurn; ++i) {
        state[i] = twist(state[i], state[i + 1], state[i + kTwisterMiddle]);
    }
    for (std::size_t i = kTurn; i < kTwisterWords - 1; ++i) {
        state[i] = twist(state[i], state[i + 1], state[i - kTurn]);
    }
    state[kTwisterWords - 1] = twist(state[kTwisterWords - 1], state[0], state[kTwisterMiddle - 1]);
}

inline void KeepBelow(std::uint8_t* HWY_RESTRICT kept, const std::uint32_t* HWY_RESTRICT words, std::int64_t count,
                      std::uint64_t limit) {
    // 53 bits as 21 and 32, so that vectors compare words.
    constexpr std::uint32_t kHigh = kLow53 >> 32U;
    const auto high_limit = static_cast<std::uint32_t>(limit >> 32U);
    const auto low_limit = static_cast<std::uint32_t>(limit);
    std::uint32_t drawn[kTwisterWords];
    for (std::int64_t i = 0; i < 2 * count; ++i) {
        drawn[i] = tempered(words[i]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
        const std::uint32_t high = drawn[2 * i] & kHigh;
        const bool below = (high < high_limit) | ((high == high_limit) & (drawn[2 * i + 1] < low_limit));
        kept[i] = static_cast<std::uint8_t>(below);
    }
}

constexpr Draws MakeDraws() { return {.refill = RefillTwister, .keep = KeepBelow}; }

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
