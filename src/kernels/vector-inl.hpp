// Vectors of the instruction set that is being compiled for, and exp and tanh of them. Included once by each of the
// files that name one; HWY_TARGET says which it is.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

// Checks inside Highway would need its library; this one takes its headers alone.
#define HWY_IS_DEBUG_BUILD 0
#include <hwy/highway.h>

#include "kernels/kernels.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class A>
using Tag = hn::ScalableTag<A>;
template <class A>
using Vec = hn::Vec<Tag<A>>;
template <class A>
inline constexpr std::int64_t kWidth = HWY_LANES(A);

template <class A>
inline constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();

/// y · 2ⁿ for whole n >= −126, and exactly 0 where x is less than `cut`. kSmall: n <= 126.
template <bool kSmall>
HWY_INLINE Vec<float> ScaleByPowerOfTwo(Vec<float> y, Vec<float> n, Vec<float> x, float cut) {
    const Tag<float> d;
#if HWY_TARGET == HWY_AVX3
    const __mmask16 kept = _mm512_cmp_ps_mask(x.raw, hn::Set(d, cut).raw, _CMP_NLT_UQ);  // NaN is not less
    return Vec<float>{_mm512_maskz_scalef_ps(kept, y.raw, n.raw)};
#else
    const hn::RebindToUnsigned<Tag<float>> du;
    // Adding 1.5 × 2^23 and the exponent's bias leaves n + 127 in the low bits.
    const auto power = [&](Vec<float> m) HWY_ATTR {
        return hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, hn::Add(m, hn::Set(d, 12582912.0F + 127.0F)))));
    };
    const auto scaled = [&]() HWY_ATTR {
        if constexpr (kSmall) {
            return hn::Mul(y, power(n));
        }
        // 2^128 is no float, so the last binade takes two steps.
        const auto last = hn::IfThenElseZero(hn::Gt(n, hn::Set(d, 127.0F)), hn::Set(d, 1.0F));
        return hn::Mul(hn::Mul(y, power(hn::Sub(n, last))), hn::Add(hn::Set(d, 1.0F), last));
    };
    return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, cut)), scaled());
#endif
}

/// step(i) for each of a few vectors.
template <std::size_t kCount, class Step>
HWY_INLINE void ForEach(const Step& step) {
    HWY_UNROLL(8)
    for (std::size_t i = 0; i < kCount; ++i) {
        step(i);
    }
}

/// Vectors whose exponentials are computed side by side: one is a chain of a dozen operations, each of which waits four
/// cycles for the one before, and the cores' schedulers hold too few instructions to find the next chains by
/// themselves.
inline constexpr std::size_t kSideBySide = 4;

/// exp of each, side by side. At most one float from the correctly rounded value for x >= −87.33 and exactly 0 below:
/// the softmax has no use for weights that are subnormal, and arithmetic on them is slow. +∞ where the value overflows,
/// NaN for NaN. kSmall: x is known to stay below 88.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody & Waite 1980); exp(r) = 1 + r (1 + r q(r)) with the q of degree 4 whose
/// largest relative error is the least, 2⁻²⁷·⁸ with its coefficients rounded. Horner's last two steps round to half a
/// float and, r being below 0.35, a fifth of one.
template <bool kSmall, std::size_t kCount>
HWY_INLINE void ExpEach(Vec<float> (&x)[kCount]) {
    const Tag<float> d;
    // Adding 1.5 × 2^23 rounds to a whole number. ln 2 is split so that n × high is exact for |n| < 2^9.
    const auto round = hn::Set(d, 12582912.0F);
    Vec<float> n[kCount];
    Vec<float> r[kCount];
    Vec<float> p[kCount];
    ForEach<kCount>([&](std::size_t i) HWY_ATTR { n[i] = hn::MulAdd(x[i], hn::Set(d, 1.44269504F), round); });
    ForEach<kCount>([&](std::size_t i) HWY_ATTR { n[i] = hn::Sub(n[i], round); });
    ForEach<kCount>([&](std::size_t i) HWY_ATTR { r[i] = hn::NegMulAdd(n[i], hn::Set(d, 0.693359375F), x[i]); });
    ForEach<kCount>([&](std::size_t i) HWY_ATTR { r[i] = hn::NegMulAdd(n[i], hn::Set(d, -2.12194440e-4F), r[i]); });
    ForEach<kCount>([&](std::size_t i) HWY_ATTR {
        p[i] = hn::MulAdd(hn::Set(d, 1.381443348e-3F), r[i], hn::Set(d, 8.368796669e-3F));
    });
    HWY_UNROLL(5)
    for (const float coefficient : {4.166839644e-2F, 1.666651964e-1F, 4.999999404e-1F, 1.0F, 1.0F}) {
        ForEach<kCount>([&](std::size_t i) HWY_ATTR { p[i] = hn::MulAdd(p[i], r[i], hn::Set(d, coefficient)); });
    }
    ForEach<kCount>([&](std::size_t i) HWY_ATTR {
        const auto result = ScaleByPowerOfTwo<kSmall>(p[i], n[i], x[i], -87.33F);
        const auto overflows = hn::Gt(x[i], hn::Set(d, 88.8F));
        x[i] = kSmall ? result : hn::IfThenElse(overflows, hn::Set(d, std::numeric_limits<float>::infinity()), result);
    });
}

template <bool kSmall>
HWY_INLINE Vec<float> Exp(Vec<float> x) {
    Vec<float> alone[1] = {x};
    ExpEach<kSmall>(alone);
    return alone[0];
}

/// At most 2 floats from the correctly rounded value: near 0, where softcap is nearly the identity, x + x³ p(x²) with
/// the coefficients of Cephes (Moshier 1992), and 1 − 2 / (exp(2|x|) + 1) beyond.
HWY_INLINE Vec<float> Tanh(Vec<float> x) {
    const Tag<float> d;
    const auto magnitude = hn::Abs(x);
    const auto square = hn::Mul(magnitude, magnitude);
    auto p = hn::MulAdd(hn::Set(d, -5.70498872745e-3F), square, hn::Set(d, 2.06390887954e-2F));
    p = hn::MulAdd(p, square, hn::Set(d, -5.37397155531e-2F));
    p = hn::MulAdd(p, square, hn::Set(d, 1.33314422036e-1F));
    p = hn::MulAdd(p, square, hn::Set(d, -3.33332819422e-1F));
    const auto near = hn::MulAdd(magnitude, hn::Mul(square, p), magnitude);
    const auto one = hn::Set(d, 1.0F);
    const auto two = hn::Set(d, 2.0F);
    const auto far = hn::Sub(one, hn::Div(two, hn::Add(Exp<false>(hn::Add(magnitude, magnitude)), one)));
    return hn::CopySign(hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625F)), near, far), x);
}

/// float64 is for checks and takes the standard library's functions.
template <class Function>
HWY_INLINE Vec<double> EachLane(Vec<double> x, Function function) {
    const Tag<double> d;
    alignas(64) double lanes[kWidth<double>];
    hn::Store(x, d, lanes);
    for (double& lane : lanes) {
        lane = function(lane);
    }
    return hn::Load(d, lanes);
}
template <bool kSmall>
HWY_INLINE Vec<double> Exp(Vec<double> x) {
    return EachLane(x, static_cast<double (*)(double)>(std::exp));
}
template <bool kSmall, std::size_t kCount>
HWY_INLINE void ExpEach(Vec<double> (&x)[kCount]) {
    ForEach<kCount>([&](std::size_t i) HWY_ATTR { x[i] = Exp<kSmall>(x[i]); });
}
HWY_INLINE Vec<double> Tanh(Vec<double> x) { return EachLane(x, static_cast<double (*)(double)>(std::tanh)); }

/// As many numbers as a vector holds doubles.
HWY_INLINE Vec<double> LoadWide(const double* from) { return hn::LoadU(Tag<double>(), from); }
HWY_INLINE Vec<double> LoadWide(const float* from) {
    const hn::Rebind<float, Tag<double>> d;
    return hn::PromoteTo(Tag<double>(), hn::LoadU(d, from));
}
HWY_INLINE void StoreWide(Vec<double> values, double* to) { hn::StoreU(values, Tag<double>(), to); }
HWY_INLINE void StoreWide(Vec<double> values, float* to) {
    const hn::Rebind<float, Tag<double>> d;
    hn::StoreU(hn::DemoteTo(d, values), d, to);
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
