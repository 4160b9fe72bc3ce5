// Products of a few rows with keys as they are stored. Packed, a key is read, written and read again; here it is
// transposed in registers and met at once, in the order of the packed one's sums:
//
//     keys as stored            four columns of them                sums of kRows queries and these keys
//
//     0 1 2 3 │ 4 5 6 7 │ …     0 0 0 0  keys, side by side         += q₀ · column 0
//     0 1 2 3 │ 4 5 6 7 │ …     1 1 1 1                             += q₁ · column 1
//     0 1 2 3 │ 4 5 6 7 │ …     2 2 2 2                             += q₂ · column 2
//     0 1 2 3 │ 4 5 6 7 │ …     3 3 3 3                             += q₃ · column 3
//
// What is transposed are places of 32 bits: a float, or two 16-bit numbers, which become two columns.
#pragma once

#include "kernels/multiply-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

/// Rows of keys as they are stored.
template <class T>
struct StoredKeys {
    const T* data;
    std::int64_t stride;
    std::int64_t count;
};

/// kEach elements of L stand in a place of stored numbers T, and number `which` of each place is Numbers(places,
/// which): the place itself, or half of it.
template <class L, class T>
struct Places {
    static constexpr std::int64_t kEach = 1;
    static HWY_INLINE Vec<float> Numbers(Vec<float> places, std::int64_t /*which*/) { return places; }
};

#if HWY_TARGET == HWY_SCALAR

/// So many rows meet keys as they are stored.
template <class A>
inline constexpr std::int64_t kFewKeyRows = 0;

#else

template <class A>
inline constexpr std::int64_t kFewKeyRows = std::is_same_v<A, float> ? 8 : 0;

template <>
struct Places<float, BFloat16> {
    static constexpr std::int64_t kEach = 2;
    static HWY_INLINE Vec<float> Numbers(Vec<float> places, std::int64_t which) {
        const hn::RebindToUnsigned<Tag<float>> du;
        const auto bits = hn::BitCast(du, places);
        return hn::BitCast(Tag<float>(),
                           which == 0 ? hn::ShiftLeft<16>(bits) : hn::And(bits, hn::Set(du, 0xFFFF0000U)));
    }
};
template <>
struct Places<float, Float16> {
    static constexpr std::int64_t kEach = 2;
    static HWY_INLINE Vec<float> Numbers(Vec<float> places, std::int64_t which) {
        const hn::Rebind<std::uint16_t, Tag<float>> d16;
        const hn::Rebind<hwy::float16_t, Tag<float>> half;
        const auto bits = hn::BitCast(hn::RebindToUnsigned<Tag<float>>(), places);
        const auto halves = hn::TruncateTo(d16, which == 0 ? bits : hn::ShiftRight<16>(bits));
        return hn::PromoteTo(Tag<float>(), hn::BitCast(half, halves));
    }
};

/// A block of rows: as many sums as leave registers for four columns.
inline constexpr unsigned kStripRows = kBlockColumns > 2 ? 6 : 4;

/// scores (kRows, kKeyTile), kStrips vectors of columns ← left · keysᵀ. four_at(key, i): four places of a key from i
/// on.
template <class T, unsigned kRows, unsigned kStrips, class L, class FourAt>
HWY_INLINE void MultiplyStrips(float* HWY_RESTRICT scores, const Left<L>& left, std::int64_t places,
                               const FourAt& four_at, AskedAlong& all_asked) {
    AskedAlong asked = all_asked;  // in registers
    const Tag<float> d;
    constexpr std::int64_t kEach = Places<L, T>::kEach;
    Vec<float> sums[kRows][kStrips];
    HWY_UNROLL(8)
    for (unsigned r = 0; r < kRows; ++r) {
        HWY_UNROLL(2)
        for (unsigned s = 0; s < kStrips; ++s) {
            sums[r][s] = hn::Zero(d);
        }
    }
    const L* HWY_RESTRICT a = left.data;
    for (std::int64_t i = 0; i < places; i += 4) {
        HWY_UNROLL(2)
        for (unsigned s = 0; s < kStrips; ++s) {
            Vec<float> columns[4];
            FourColumns(columns, [&](std::int64_t key) HWY_ATTR { return four_at(s * kWidth<float> + key, i); });
            HWY_UNROLL(4)
            for (std::int64_t c = 0; c < 4; ++c) {
                asked.step();
                HWY_UNROLL(2)
                for (std::int64_t n = 0; n < kEach; ++n) {
                    const Vec<float> numbers = Places<L, T>::Numbers(columns[c], n);
                    HWY_UNROLL(8)
                    for (unsigned r = 0; r < kRows; ++r) {
                        const L* at = a + r * left.row_step + c * kEach + n;
                        sums[r][s] = Elements<L>::AddProduct(sums[r][s], Elements<L>::Repeated(at), numbers);
                    }
                }
            }
        }
        a += 4 * kEach;
    }
    all_asked = asked;
    HWY_UNROLL(8)
    for (unsigned r = 0; r < kRows; ++r) {
        HWY_UNROLL(2)
        for (unsigned s = 0; s < kStrips; ++s) {
            hn::Store(sums[r][s], d, scores + r * kKeyTile + s * kWidth<float>);
        }
    }
}

/// All rows, in blocks of one height, over the first kStrips vectors of keys.
template <unsigned kStrips, unsigned kRows = kStripRows, class L, class T>
void MultiplyStripRows(float* scores, Left<L> left, const StoredKeys<T>& keys, std::int64_t rows, std::int64_t places,
                       AskedAlong& asked) {
    if (height_of<kStripRows>(rows) == kRows) {
        for (; rows >= kRows; rows -= kRows) {
            constexpr std::int64_t kNumbers = 4 / static_cast<std::int64_t>(sizeof(T));  // of a place
            const auto four = [](const T* key, std::int64_t i)
                                  HWY_ATTR { return LoadFour(reinterpret_cast<const float*>(key + i * kNumbers)); };
            if (keys.count >= kStrips * kWidth<float>) {
                MultiplyStrips<T, kRows, kStrips>(
                    scores, left, places,
                    [&](std::int64_t key, std::int64_t i) HWY_ATTR { return four(keys.data + key * keys.stride, i); },
                    asked);
            } else {
                const T* rows_of_keys[kStrips * kWidth<float>];  // the last one stands for those that are not there
                for (std::int64_t key = 0; key < kStrips * kWidth<float>; ++key) {
                    rows_of_keys[key] = keys.data + std::min(key, keys.count - 1) * keys.stride;
                }
                MultiplyStrips<T, kRows, kStrips>(
                    scores, left, places,
                    [&](std::int64_t key, std::int64_t i) HWY_ATTR { return four(rows_of_keys[key], i); }, asked);
            }
            scores += kRows * kKeyTile;
            left.data += kRows * left.row_step;
        }
    }
    if constexpr (kRows > 1) {
        if (rows > 0) {
            MultiplyStripRows<kStrips, kRows - 1>(scores, left, keys, rows, places, asked);
        }
    }
}

/// scores (rows, kKeyTile), columns of the keys ← left · keysᵀ; width is a multiple of kLanes. As much is asked for at
/// each step as is read.
template <class L, class T>
void MultiplyStored(float* scores, const Left<L>& left, StoredKeys<T> keys, std::int64_t rows, std::int64_t width,
                    Ahead* ahead) {
    constexpr unsigned kStrips = kBlockColumns > 2 ? 2 : 1;
    const std::int64_t places = width * static_cast<std::int64_t>(sizeof(T)) / 4;
    const std::int64_t blocks = blocks_of<kStripRows>(rows);
    while (keys.count > 0) {
        const std::int64_t strips = keys.count > kWidth<float> && rows > 2 ? kStrips : 1;
        const std::int64_t met = strips * kWidth<float>;
        AskedAlong asked(ahead, met * places * 4 / Ahead::kLine, places * strips * blocks);
        if (strips == kStrips) {
            MultiplyStripRows<kStrips>(scores, left, keys, rows, places, asked);
        } else {
            MultiplyStripRows<1>(scores, left, keys, rows, places, asked);
        }
        scores += met;
        keys.data += met * keys.stride;
        keys.count -= met;
    }
}

#endif

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
