// Dropout's factors from Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011), a vector of counters at a time.
#pragma once

#include <algorithm>

#include "kernels/kernels.hpp"
#include "kernels/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

using Words = Vec<std::uint32_t>;

/// Both halves of the 64-bit products.
struct WideProduct {
    Words high, low;
};

HWY_INLINE WideProduct MultiplyWide(Words a, Words b) {
#if HWY_TARGET == HWY_SCALAR
    const std::uint64_t product = std::uint64_t{a.raw} * b.raw;
    return {Words(static_cast<std::uint32_t>(product >> 32U)), Words(static_cast<std::uint32_t>(product))};
#else
    const Tag<std::uint32_t> d;
    const auto even = hn::BitCast(d, hn::MulEven(a, b));
    const auto odd = hn::BitCast(d, hn::MulEven(hn::DupOdd(a), b));
    // Halves change places by shuffles: shifts would compete with the multiplications for their port.
    return {hn::OddEven(odd, hn::Shuffle2301(even)), hn::OddEven(hn::Shuffle2301(odd), even)};
#endif
}

/// words[4 i + j] ← word j of counter (first + i, rest), for as many i as a vector has lanes.
HWY_INLINE void Philox(std::uint32_t* words, std::uint32_t first, const std::uint32_t (&rest)[3], std::uint64_t seed) {
    const Tag<std::uint32_t> d;
    const auto factor0 = hn::Set(d, 0xD2511F53U);
    const auto factor1 = hn::Set(d, 0xCD9E8D57U);
    auto c0 = hn::Iota(d, first);
    auto c1 = hn::Set(d, rest[0]);
    auto c2 = hn::Set(d, rest[1]);
    auto c3 = hn::Set(d, rest[2]);
    auto key0 = static_cast<std::uint32_t>(seed);
    auto key1 = static_cast<std::uint32_t>(seed >> 32U);
    for (int round = 0; round < 10; ++round) {
        const WideProduct product0 = MultiplyWide(c0, factor0);
        const WideProduct product1 = MultiplyWide(c2, factor1);
        c0 = hn::Xor(hn::Xor(product1.high, c1), hn::Set(d, key0));
        c1 = product1.low;
        c2 = hn::Xor(hn::Xor(product0.high, c3), hn::Set(d, key1));
        c3 = product0.low;
        key0 += 0x9E3779B9U;  // golden ratio
        key1 += 0xBB67AE85U;  // √3 − 1
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, d, words);
}

template <class A>
void DrawFactors(A* HWY_RESTRICT factors, const DropoutRow<A>& row, std::int64_t columns) {
    constexpr std::int64_t kStep = 4 * kWidth<std::uint32_t>;
    alignas(64) std::uint32_t words[static_cast<std::size_t>(kKeyTile + kStep)];  // 3 before the first, kStep − 4 after
    const std::int64_t shift = row.first_key % 4;
    for (std::int64_t at = 0; at < shift + columns; at += kStep) {
        Philox(words + at, static_cast<std::uint32_t>((row.first_key + at) / 4), row.counter, row.seed);
    }
    const std::uint32_t below = row.drop_below;
    const A scale = row.keep_scale;
    for (std::int64_t c = 0; c < columns; ++c) {
        factors[c] = words[shift + c] >= below ? scale : A(0);
    }
    std::fill(factors + columns, factors + kKeyTile, A(0));
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
