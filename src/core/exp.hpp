// exp and tanh, written so that loops over them vectorise: for single numbers of a row. Tiles have the kernels' own.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace qkv {

namespace detail {

/// x = n ln 2 + r with |r| <= ln 2 / 2, and expm1(r).
struct ExpParts {
    float n;
    float expm1_r;
};

inline ExpParts exp_parts(float x) noexcept {
    // Adding 1.5 × 2^23 rounds to an integer in the low mantissa bits (Cody & Waite 1980). ln 2 is split so that
    // n × high is exact for |n| < 2^9: high has 15 significant bits.
    constexpr float kRound = 12582912.0F;
    constexpr float kLn2High = 0.693359375F;
    constexpr float kLn2Low = -2.12194440e-4F;
    const float n = (x * 1.44269504F + kRound) - kRound;
    const float r = (x - n * kLn2High) - n * kLn2Low;
    // (exp(r) − 1 − r) / r² on |r| <= 0.3466: degree 5, the coefficients of Cephes (Moshier 1992).
    float q = 1.9875691500e-4F;
    q = q * r + 1.3981999507e-3F;
    q = q * r + 8.3334519073e-3F;
    q = q * r + 4.1665795894e-2F;
    q = q * r + 1.6666665459e-1F;
    q = q * r + 5.0000001201e-1F;
    return {n, r + (r * r) * q};
}

/// 2^n for integer n in [-126, 127].
inline float power_of_two(float n) noexcept {
    constexpr float kRoundBias = 12582912.0F + 127.0F;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(n + kRoundBias) << 23U);
}

}  // namespace detail

/// At most one float from the correctly rounded value for x >= −87.33 and exactly 0 below: the softmax has no use for
/// weights that are subnormal, and arithmetic on them is slow. +∞ where the value overflows, NaN for NaN.
inline float exp_fast(float x) noexcept {
    const detail::ExpParts parts = detail::exp_parts(x);
    // 2^128 is no float, so the last binade takes two steps.
    const float last = parts.n > 127.0F ? 1.0F : 0.0F;
    const float scale = detail::power_of_two(parts.n - last);
    float result = (scale + scale * parts.expm1_r) * (1.0F + last);
    result = x > 88.8F ? std::bit_cast<float>(0x7F800000U) : result;
    return x < -87.33F ? 0.0F : result;
}

/// float64 is for checks and takes the standard library's.
inline double exp_fast(double x) noexcept { return std::exp(x); }

/// At most 2 floats from the correctly rounded value: near 0, where softcap is nearly the identity, x + x³ p(x²) with
/// the coefficients of Cephes (Moshier 1992), and 1 − 2 / (exp(2|x|) + 1) beyond.
inline float tanh_fast(float x) noexcept {
    const float magnitude = std::fabs(x);
    const float square = magnitude * magnitude;
    float p = -5.70498872745e-3F;
    p = p * square + 2.06390887954e-2F;
    p = p * square - 5.37397155531e-2F;
    p = p * square + 1.33314422036e-1F;
    p = p * square - 3.33332819422e-1F;
    const float near = magnitude + magnitude * (square * p);
    const float far = 1.0F - 2.0F / (exp_fast(2.0F * magnitude) + 1.0F);
    return std::copysign(magnitude < 0.625F ? near : far, x);
}

inline double tanh_fast(double x) noexcept { return std::tanh(x); }

}  // namespace qkv
