// The recurrence of MT19937 (Matsumoto & Nishimura 1998) and what is drawn of a word.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qkv {

inline constexpr std::size_t kTwisterWords = 624;
inline constexpr std::size_t kTwisterMiddle = 397;

/// The high bit of one word and the rest of the next, shifted, onto a word further on.
[[nodiscard]] constexpr std::uint32_t twist(std::uint32_t word, std::uint32_t next, std::uint32_t further) noexcept {
    const std::uint32_t joined = (word & 0x80000000U) | (next & 0x7FFFFFFFU);
    return further ^ (joined >> 1U) ^ ((0U - (next & 1U)) & 0x9908B0DFU);
}

[[nodiscard]] constexpr std::uint32_t tempered(std::uint32_t word) noexcept {
    word ^= word >> 11U;
    word ^= (word << 7U) & 0x9D2C5680U;
    word ^= (word << 15U) & 0xEFC60000U;
    return word ^ (word >> 18U);
}

/// What PyTorch takes of 64 bits for a double.
inline constexpr std::uint64_t kLow53 = 0x1F'FFFF'FFFF'FFFFU;

}  // namespace qkv
