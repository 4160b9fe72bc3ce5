// Operands of bf16 products in pairs, as AVX512-BF16's and AMX's instructions take them: a 32-bit place holds two
// numbers that are neighbours along the inner dimension, the first in the lower half, and of each pair both products
// are added to one sum.
//
//     queries  (rows, D / 2)       16-bit rows as they are
//     keys     (D / 2, columns)    pairs along D, transposed
//     values   (columns / 2, Dv)   pairs of keys
//
// Included once, by files of AVX-512.
#pragma once

#include "kernels/multiply-inl.hpp"
#include "kernels/softmax-inl.hpp"
#include "kernels/stored_keys-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

/// Two bf16 numbers, bit for bit as a float.
struct Pair {
    float bits;
};

/// A row without a second one.
template <class T>
struct Alone {
    T number;
};

/// Sixteen 16-bit numbers of a row, each in the lower half of its place: stored ones, or floats read from such.
HWY_INLINE __m512i LowerHalves(const std::uint16_t* row) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
}
HWY_INLINE __m512i LowerHalves(const float* row) { return _mm512_srli_epi32(_mm512_loadu_si512(row), 16); }
HWY_INLINE __m512i UpperHalves(const std::uint16_t* row) { return _mm512_slli_epi32(LowerHalves(row), 16); }
HWY_INLINE __m512i UpperHalves(const float* row) { return _mm512_loadu_si512(row); }

/// Pairs meet pairs, two rows of numbers, or one that is alone.
template <>
struct Elements<Pair> {
    template <class T>
    static constexpr std::int64_t kRowsMet = std::is_arithmetic_v<T> ? 2 : 1;
    static HWY_INLINE Vec<float> Repeated(const Pair* left) { return hn::Set(Tag<float>(), left->bits); }
    static HWY_INLINE Vec<float> Met(const Pair* right, std::int64_t /*stride*/) {
        return hn::LoadU(Tag<float>(), &right->bits);
    }
    template <class T>
    static HWY_INLINE Vec<float> Met(const T* right, std::int64_t stride) {
        return Vec<float>{_mm512_castsi512_ps(_mm512_or_si512(LowerHalves(right), UpperHalves(right + stride)))};
    }
    template <class T>
    static HWY_INLINE Vec<float> Met(const Alone<T>* right, std::int64_t /*stride*/) {
        return Vec<float>{_mm512_castsi512_ps(LowerHalves(&right->number))};
    }
    /// Subnormal numbers count as 0, and sums that are so become it.
    static HWY_INLINE Vec<float> AddProduct(Vec<float> sum, Vec<float> left, Vec<float> right) {
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(left.raw), "v"(right.raw));
        return sum;
    }
};
[[nodiscard]] HWY_INLINE const Pair* Pairs(const float* packed) { return reinterpret_cast<const Pair*>(packed); }

/// Pairs of rows of `width` numbers that are filled up with zeros to a multiple of kStep.
template <std::int64_t kStep>
[[nodiscard]] constexpr std::int64_t pairs_of(std::int64_t width) {
    static_assert(kStep % kLanes == 0);
    return (width + kStep - 1) / kStep * kStep / 2;
}

// What is packed is stored in 16 bits, or floats that were read from such, their lower halves 0. Sixteen(row, i, width)
// are numbers i to i + 15 of a row, 0 from `width` on.
HWY_INLINE __m256i Sixteen(const std::uint16_t* row, std::int64_t i, std::int64_t width) {
    const std::int64_t left = std::clamp<std::int64_t>(width - i, 0, 16);
    return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1U << static_cast<unsigned>(left)) - 1U), row + i);
}
HWY_INLINE __m256i Sixteen(const float* row, std::int64_t i, std::int64_t width) {
    return i < width ? _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_loadu_si512(row + i), 16)) : __m256i{};
}

template <class Do>
void OfStored(const Rows& rows, const Do& work) {
    if (rows.dtype == DType::bf16) {
        work(reinterpret_cast<const std::uint16_t*>(rows.data));
    } else {
        work(reinterpret_cast<const float*>(rows.data));
    }
}

inline bool PacksStored(const Rows& rows, std::int64_t /*width*/) { return rows.dtype == DType::bf16; }

/// room (rows up to the next multiple of kRowStep, pairs) ← rows as 16-bit numbers, 0 past their width and number.
template <std::int64_t kStep, std::int64_t kRowStep>
void PackRows(float* room, const Rows& rows, std::int64_t width) {
    const std::int64_t across = 2 * pairs_of<kStep>(width);
    const std::int64_t end = (rows.rows + kRowStep - 1) / kRowStep * kRowStep;
    OfStored(rows, [&](const auto* from) HWY_ATTR {
        auto* to = reinterpret_cast<std::uint16_t*>(room);
        for (std::int64_t r = 0; r < end; ++r, to += across) {
            for (std::int64_t i = 0; i < across; i += 16) {
                const __m256i numbers = r < rows.rows ? Sixteen(from + r * rows.stride, i, width) : __m256i{};
                _mm256_store_si256(reinterpret_cast<__m256i*>(to + i), numbers);
            }
        }
    });
}

template <std::int64_t kStep>
std::int64_t QueryPairRoom(std::int64_t width) {
    return kQueryTile * pairs_of<kStep>(width);
}
template <std::int64_t kStep, std::int64_t kRowStep>
const float* PackQueryPairs(float* room, const Rows& rows, std::int64_t width) {
    PackRows<kStep, kRowStep>(room, rows, width);
    return room;
}

/// Twice: rows that must be filled up are so before they are transposed.
template <std::int64_t kStep>
std::int64_t KeyPairRoom(std::int64_t width) {
    return 2 * kKeyTile * pairs_of<kStep>(width);
}
/// Pairs along D behave like floats that are transposed.
template <std::int64_t kStep>
const float* PackKeyPairs(float* room, std::int64_t first, const Rows& rows, std::int64_t width, Ahead* ahead) {
    const std::int64_t across = pairs_of<kStep>(width);
    const std::byte* from = rows.data;
    std::int64_t step = rows.stride * 2;
    if (rows.dtype != DType::bf16 || width % kStep != 0) {
        float* filled = room + kKeyTile * across;
        PackRows<kStep, 1>(filled, rows, width);
        from = reinterpret_cast<const std::byte*>(filled);
        step = across * 4;
    }
    const auto four_at = [&](std::int64_t row, std::int64_t i) HWY_ATTR {
        return hn::LoadU(hn::FixedTag<float, 4>(), reinterpret_cast<const float*>(from + row * step + i * 4));
    };
    const std::int64_t columns = padded(rows.rows);
    TransposeFloats(room + first, kKeyTile, columns, rows.rows, across, four_at, ahead);
    return room;
}

/// room: panels (kKeyTile / 2, panel) of pairs of rows, one after another; 0 past their width, and past the rows up to
/// the next multiple of row_step.
inline void PackRowPairs(float* room, const Rows& rows, std::int64_t width, std::int64_t panel, std::int64_t row_step) {
    const std::int64_t row_end = (rows.rows + row_step - 1) / row_step * row_step;
    OfStored(rows, [&](const auto* from) HWY_ATTR {
        const auto wide = [&](std::int64_t row, std::int64_t i) HWY_ATTR {
            return _mm512_cvtepu16_epi32(row < rows.rows ? Sixteen(from + row * rows.stride, i, width) : __m256i{});
        };
        for (std::int64_t first = 0; first < padded(width); first += panel) {
            const std::int64_t end = std::min(first + panel, padded(width));
            for (std::int64_t r = 0; r < row_end; r += 2) {
                for (std::int64_t i = first; i < end; i += 16) {
                    const __m512i pair = _mm512_or_si512(wide(r, i), _mm512_slli_epi32(wide(r + 1, i), 16));
                    _mm512_store_si512(room + r / 2 * panel + i - first, pair);
                }
            }
            room += kKeyTile / 2 * panel;
        }
    });
}

/// 16 floats rounded to bf16.
HWY_INLINE __m256i Rounded(Vec<float> x) {
    __m256i rounded;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(x.raw));
    return rounded;
}

/// In place, at the beginning of each row.
inline void RoundRows(float* weights, std::int64_t rows) {
    for (float* row = weights; row < weights + rows * kKeyTile; row += kKeyTile) {
        for (std::int64_t c = 0; c < kKeyTile; c += kWidth<float>) {
            const auto x = hn::Load(Tag<float>(), row + c);
            _mm256_store_si256(reinterpret_cast<__m256i*>(reinterpret_cast<std::uint16_t*>(row) + c), Rounded(x));
        }
    }
}

/// room (kQueryTile / 2, kKeyTile) ← pairs of rows, rounded; 0 past them.
inline const float* PackRoundedPairs(float* room, const float* weights, std::int64_t rows) {
    const Tag<float> d;
    for (std::int64_t r = 0; r < kQueryTile; r += 2) {
        for (std::int64_t c = 0; c < kKeyTile; c += kWidth<float>) {
            const auto row = [&](std::int64_t at) HWY_ATTR {
                const auto x = at < rows ? hn::Load(d, weights + at * kKeyTile + c) : hn::Zero(d);
                return _mm512_cvtepu16_epi32(Rounded(x));
            };
            const __m512i pair = _mm512_or_si512(row(r), _mm512_slli_epi32(row(r + 1), 16));
            _mm512_store_si512(room + r / 2 * kKeyTile + c, pair);
        }
    }
    return room;
}

/// exp for weights that are rounded to 16 bits: relative error at most 2⁻¹⁷ for x >= −87.33 and exactly 0 below, 1 at
/// 0. 2ᶻ with z = x / ln 2: the fraction of z through 1 + f q(f), q of degree 4 with the least largest relative error
/// (2⁻²³·⁵) on [0, 1), so that lse, the one thing that is not rounded to 16 bits, is a float's worth. The rounding of
/// z, which is what takes the small weights to 2⁻¹⁷, does not reach it.
struct CoarseWeights {
    static constexpr float kLog2E = 1.44269504F;

    /// 2ᶻ, exactly 0 below `cut`; NaN is not less.
    template <std::size_t kCount>
    static HWY_INLINE void Exp2Each(Vec<float> (&z)[kCount], float cut) {
        const Tag<float> d;
        Vec<float> f[kCount];
        Vec<float> p[kCount];
        ForEach<kCount>([&](std::size_t i) HWY_ATTR {
            f[i] = Vec<float>{_mm512_reduce_ps(z[i].raw, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
        });
        ForEach<kCount>([&](std::size_t i) HWY_ATTR {
            p[i] = hn::MulAdd(hn::Set(d, 0.0018671300819070082F), f[i], hn::Set(d, 0.009017030284436749F));
        });
        HWY_UNROLL(4)
        for (const float coefficient : {0.055799913145968067F, 0.24016445013606755F, 0.69315131180752296F, 1.0F}) {
            ForEach<kCount>([&](std::size_t i) HWY_ATTR { p[i] = hn::MulAdd(p[i], f[i], hn::Set(d, coefficient)); });
        }
        ForEach<kCount>([&](std::size_t i) HWY_ATTR {
            const __mmask16 kept = _mm512_cmp_ps_mask(z[i].raw, _mm512_set1_ps(cut), _CMP_NLT_UQ);
            z[i] = Vec<float>{_mm512_maskz_scalef_ps(kept, p[i].raw, z[i].raw)};  // takes z's whole part
        });
    }
    /// What stands for x − base of a row: one multiply-add to z. Where base / ln 2 is no float, the difference comes
    /// first.
    struct Row {
        HWY_INLINE explicit Row(float row_base)
            : plain_base(hn::Set(Tag<float>(), row_base)),
              base(hn::Set(Tag<float>(), row_base * kLog2E)),
              far(!(std::fabs(row_base) < 1e38F)) {}
        [[nodiscard]] HWY_INLINE Vec<float> Above(Vec<float> x) const {
            const auto log2e = hn::Set(Tag<float>(), kLog2E);
            return HWY_UNLIKELY(far) ? hn::Mul(hn::Sub(x, plain_base), log2e) : hn::MulSub(x, log2e, base);
        }

        Vec<float> plain_base;
        Vec<float> base;
        bool far;
    };
    template <bool kSmall, std::size_t kCount>
    static HWY_INLINE void ExpAbove(Vec<float> (&z)[kCount]) {
        Exp2Each(z, -87.33F * kLog2E);
    }
    static HWY_INLINE Vec<float> Exp(Vec<float> x) {
        Vec<float> alone[1] = {Row(0.0F).Above(x)};
        ExpAbove<true>(alone);
        return alone[0];
    }
    /// Rounded to bf16, packed at the row's beginning.
    static HWY_INLINE void Put(Vec<float> weights, float* row, std::int64_t c) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(reinterpret_cast<std::uint16_t*>(row) + c), Rounded(weights));
    }
};

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
