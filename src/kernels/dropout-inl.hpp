// Dropout's factors from Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011): sixteen counters at a time, in plain loops that the compiler turns into vectors of the instruction set.
#pragma once

#include <algorithm>

#include "kernels/kernels.hpp"
#include "kernels/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

inline constexpr std::int64_t kCounters = 16;

/// words[4 i + j] ← word j of counter (first + i, rest).
inline void Philox(std::uint32_t* HWY_RESTRICT words, std::uint32_t first, const std::uint32_t (&rest)[3],
                   std::uint64_t seed) {
    std::uint32_t c0[kCounters];
    std::uint32_t c1[kCounters];
    std::uint32_t c2[kCounters];
    std::uint32_t c3[kCounters];
    for (std::int64_t i = 0; i < kCounters; ++i) {
        c0[i] = first + static_cast<std::uint32_t>(i);
        c1[i] = rest[0];
        c2[i] = rest[1];
        c3[i] = rest[2];
    }
    auto key0 = static_cast<std::uint32_t>(seed);
    auto key1 = static_cast<std::uint32_t>(seed >> 32U);
    for (int round = 0; round < 10; ++round) {
        for (std::int64_t i = 0; i < kCounters; ++i) {
            const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * c0[i];
            const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * c2[i];
            c0[i] = static_cast<std::uint32_t>(product1 >> 32U) ^ c1[i] ^ key0;
            c1[i] = static_cast<std::uint32_t>(product1);
            c2[i] = static_cast<std::uint32_t>(product0 >> 32U) ^ c3[i] ^ key1;
            c3[i] = static_cast<std::uint32_t>(product0);
        }
        key0 += 0x9E3779B9U;  // golden ratio
        key1 += 0xBB67AE85U;  // √3 − 1
    }
    for (std::int64_t i = 0; i < kCounters; ++i) {
        words[4 * i] = c0[i];
        words[4 * i + 1] = c1[i];
        words[4 * i + 2] = c2[i];
        words[4 * i + 3] = c3[i];
    }
}

template <class A>
void DrawFactors(A* HWY_RESTRICT factors, const DropoutRow<A>& row, std::int64_t columns) {
    constexpr std::int64_t kWords = 4 * kCounters;
    std::uint32_t words[kKeyTile + kWords];
    const std::int64_t shift = row.first_key % 4;
    for (std::int64_t at = 0; at < shift + columns; at += kWords) {
        Philox(words + at, static_cast<std::uint32_t>((row.first_key + at) / 4), row.counter, row.seed);
    }
    for (std::int64_t c = 0; c < columns; ++c) {
        factors[c] = words[shift + c] >= row.drop_below ? row.keep_scale : A(0);
    }
    std::fill(factors + columns, factors + kKeyTile, A(0));
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
