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

/// Rows that draw side by side: ten rounds are a chain, each of which waits for the products of the one before.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr std::size_t kRowsAbreast = 4;
#else
inline constexpr std::size_t kRowsAbreast = 2;
#endif
/// Of a tile's row, from up to 3 words before its first to a vector of counters that ends past its last.
inline constexpr std::int64_t kCounterWords = 4 * kWidth<std::uint32_t>;
inline constexpr std::size_t kRowWords = static_cast<std::size_t>(kKeyTile + kCounterWords);

/// words[r][at + 4 i + j] ← word j of counter (first + i, rest[0] + r, rest[1], rest[2]), for as many i as a vector has
/// lanes.
HWY_INLINE void Philox(std::uint32_t (&words)[kRowsAbreast][kRowWords], std::int64_t at, std::uint32_t first,
                       const std::uint32_t (&rest)[3], std::uint64_t seed) {
    const Tag<std::uint32_t> d;
    const auto factor0 = hn::Set(d, 0xD2511F53U);
    const auto factor1 = hn::Set(d, 0xCD9E8D57U);
    Words c0[kRowsAbreast], c1[kRowsAbreast], c2[kRowsAbreast], c3[kRowsAbreast];
    ForEach<kRowsAbreast>([&](std::size_t r) HWY_ATTR {
        c0[r] = hn::Iota(d, first);
        c1[r] = hn::Set(d, rest[0] + static_cast<std::uint32_t>(r));
        c2[r] = hn::Set(d, rest[1]);
        c3[r] = hn::Set(d, rest[2]);
    });
    auto key0 = static_cast<std::uint32_t>(seed);
    auto key1 = static_cast<std::uint32_t>(seed >> 32U);
    for (int round = 0; round < 10; ++round) {
        ForEach<kRowsAbreast>([&](std::size_t r) HWY_ATTR {
            const WideProduct product0 = MultiplyWide(c0[r], factor0);
            const WideProduct product1 = MultiplyWide(c2[r], factor1);
            c0[r] = hn::Xor(hn::Xor(product1.high, c1[r]), hn::Set(d, key0));
            c1[r] = product1.low;
            c2[r] = hn::Xor(hn::Xor(product0.high, c3[r]), hn::Set(d, key1));
            c3[r] = product0.low;
        });
        key0 += 0x9E3779B9U;  // golden ratio
        key1 += 0xBB67AE85U;  // √3 − 1
    }
    ForEach<kRowsAbreast>([&](std::size_t r)
                              HWY_ATTR { hn::StoreInterleaved4(c0[r], c1[r], c2[r], c3[r], d, words[r] + at); });
}

template <class A>
void DrawFactors(A* HWY_RESTRICT factors, const DropoutRows<A>& draw, std::int64_t rows, std::int64_t columns) {
    alignas(64) std::uint32_t words[kRowsAbreast][kRowWords];
    const std::int64_t shift = draw.first_key % 4;
    const std::uint32_t below = draw.drop_below;
    const A scale = draw.keep_scale;
    for (std::int64_t row = 0; row < rows; row += static_cast<std::int64_t>(kRowsAbreast)) {
        const std::uint32_t rest[3] = {draw.counter[0] + static_cast<std::uint32_t>(row), draw.counter[1],
                                       draw.counter[2]};
        for (std::int64_t at = 0; at < shift + columns; at += kCounterWords) {
            Philox(words, at, static_cast<std::uint32_t>((draw.first_key + at) / 4), rest, draw.seed);
        }
        const std::int64_t here = std::min(rows - row, static_cast<std::int64_t>(kRowsAbreast));
        for (std::int64_t r = 0; r < here; ++r, factors += kKeyTile) {
            const std::uint32_t* drawn = words[r] + shift;
            for (std::int64_t c = 0; c < columns; ++c) {
                factors[c] = drawn[c] >= below ? scale : A(0);
            }
            std::fill(factors + columns, factors + kKeyTile, A(0));
        }
    }
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
