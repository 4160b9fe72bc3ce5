// Element types, and the two 16-bit formats with their conversions.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "qkv/export.h"

namespace qkv QKV_EXPORT {

/// What a view's elements are.
enum class DType : std::uint8_t {
    f32,      ///< IEEE binary32
    bf16,     ///< upper half of a binary32
    f16,      ///< IEEE binary16
    f64,      ///< IEEE binary64, for checks
    boolean,  ///< one byte; anything but 0 is true
};

/// Where a view's memory lies. Only the CPU today; other values are refused.
enum class Device : std::uint8_t { cpu };

/// "f32", "bf16", "f16", "f64" or "bool".
[[nodiscard]] constexpr const char* name(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32:
            return "f32";
        case DType::bf16:
            return "bf16";
        case DType::f16:
            return "f16";
        case DType::f64:
            return "f64";
        case DType::boolean:
            return "bool";
    }
    return "unknown";
}

/// Bytes of one element.
[[nodiscard]] constexpr std::int64_t size_of(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32:
            return 4;
        case DType::bf16:
        case DType::f16:
            return 2;
        case DType::f64:
            return 8;
        case DType::boolean:
            return 1;
    }
    return 0;
}

/// Storage of a bfloat16: 8 exponent bits, 7 mantissa bits.
struct BFloat16 {
    std::uint16_t bits = 0;
    BFloat16() = default;
    /// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
    constexpr explicit BFloat16(float value) noexcept {
        const auto wide = std::bit_cast<std::uint32_t>(value);
        const std::uint32_t rounded = (wide + 0x7FFFU + ((wide >> 16U) & 1U)) >> 16U;
        const std::uint32_t quiet_nan = (wide >> 16U) | 0x40U;
        bits = static_cast<std::uint16_t>((wide & 0x7FFFFFFFU) > 0x7F800000U ? quiet_nan : rounded);
    }
    constexpr explicit operator float() const noexcept {
        return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
    }
};

/// Storage of an IEEE half: 5 exponent bits, 10 mantissa bits.
/// Both conversions are free of branches, so that loops over them vectorise, and do no arithmetic on subnormal
/// floats, so that they do not depend on flush-to-zero modes.
struct Float16 {
    std::uint16_t bits = 0;
    Float16() = default;
    /// Rounds to nearest, ties to even; past 65504 (after rounding) is infinity; a NaN stays a (quiet) NaN.
    constexpr explicit Float16(float value) noexcept {
        const auto wide = std::bit_cast<std::uint32_t>(value);
        const std::uint32_t sign = (wide >> 16U) & 0x8000U;
        const std::uint32_t magnitude = wide & 0x7FFFFFFFU;
        // A normal half: re-bias the exponent by 127 - 15 and round the 13 bits that fall off.
        const std::uint32_t normal = (magnitude - (112U << 23U) + 0xFFFU + ((magnitude >> 13U) & 1U)) >> 13U;
        // Below 2^-14: adding 0.5 lines the half's subnormal bits up with the end of the mantissa and rounds them.
        const float small = magnitude < (113U << 23U) ? std::bit_cast<float>(magnitude) : 0.0F;
        const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(small + 0.5F) - std::bit_cast<std::uint32_t>(0.5F);
        std::uint32_t half = magnitude < (113U << 23U) ? subnormal : normal;
        half = magnitude >= (143U << 23U) ? 0x7C00U : half;
        half = magnitude > 0x7F800000U ? (0x7E00U | ((magnitude >> 13U) & 0x3FFU)) : half;
        bits = static_cast<std::uint16_t>(sign | half);
    }
    constexpr explicit operator float() const noexcept {
        const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16U;
        const std::uint32_t shifted = static_cast<std::uint32_t>(bits & 0x7FFFU) << 13U;
        const std::uint32_t exponent = shifted & (0x1FU << 23U);
        std::uint32_t wide = shifted + (112U << 23U);
        wide = exponent == (0x1FU << 23U) ? wide + (112U << 23U) : wide;  // infinity and NaN
        // A subnormal half m × 2^-24: read it as 2^-14 (1 + m/1024), take the 2^-14 away again.
        const float renormalised = std::bit_cast<float>(shifted + (113U << 23U)) - std::bit_cast<float>(113U << 23U);
        wide = exponent == 0 ? std::bit_cast<std::uint32_t>(renormalised) : wide;
        return std::bit_cast<float>(sign | wide);
    }
};

static_assert(sizeof(BFloat16) == 2 && sizeof(Float16) == 2);

/// dtype_of<T>: the DType whose storage is T.
template <class T>
inline constexpr DType dtype_of = DType::f32;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bf16;
template <>
inline constexpr DType dtype_of<Float16> = DType::f16;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<bool> = DType::boolean;

}  // namespace qkv QKV_EXPORT
