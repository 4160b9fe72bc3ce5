#include "io/dtype.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/check.hpp"

namespace qkv::io {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and are read without swapping");

struct Entry {
    Dtype dtype;
    std::string_view name;
    std::int64_t bits;
};

// In the order of the enumeration.
constexpr std::array<Entry, 22> kDtypes{{
    {Dtype::BOOL, "BOOL", 8},
    {Dtype::U8, "U8", 8},
    {Dtype::I8, "I8", 8},
    {Dtype::I16, "I16", 16},
    {Dtype::U16, "U16", 16},
    {Dtype::F16, "F16", 16},
    {Dtype::BF16, "BF16", 16},
    {Dtype::I32, "I32", 32},
    {Dtype::U32, "U32", 32},
    {Dtype::F32, "F32", 32},
    {Dtype::F64, "F64", 64},
    {Dtype::I64, "I64", 64},
    {Dtype::U64, "U64", 64},
    {Dtype::F4, "F4", 4},
    {Dtype::F6_E2M3, "F6_E2M3", 6},
    {Dtype::F6_E3M2, "F6_E3M2", 6},
    {Dtype::F8_E5M2, "F8_E5M2", 8},
    {Dtype::F8_E4M3, "F8_E4M3", 8},
    {Dtype::F8_E8M0, "F8_E8M0", 8},
    {Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8},
    {Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8},
    {Dtype::C64, "C64", 64},
}};

consteval bool in_order() {
    for (std::size_t index = 0; index < kDtypes.size(); ++index) {
        if (static_cast<std::size_t>(kDtypes[index].dtype) != index) {
            return false;
        }
    }
    return true;
}
static_assert(in_order());

constexpr const Entry& entry(Dtype dtype) noexcept { return kDtypes[static_cast<std::size_t>(dtype)]; }

// Storage formats that C++20 has no type for.
struct Half {
    std::uint16_t bits;
};
struct Bfloat16 {
    std::uint16_t bits;
};
struct Boolean {
    std::uint8_t byte;
};

float to_float(Bfloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16U); }

/// IEEE 754 binary16; every value is exact in float.
float to_float(Half value) {
    const std::uint32_t sign = (value.bits & 0x8000U) << 16U;
    const std::uint32_t exponent = (value.bits >> 10U) & 0x1FU;
    const std::uint32_t fraction = value.bits & 0x3FFU;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
        return sign == 0 ? magnitude : -magnitude;
    }
    const std::uint32_t wide_exponent = exponent == 0x1F ? 0xFF : exponent - 15 + 127;
    return std::bit_cast<float>(sign | wide_exponent << 23U | fraction << 13U);
}

template <class T>
bool convert(Boolean stored, T& value) {
    value = static_cast<T>(stored.byte);
    return stored.byte <= 1;
}

template <class T, class Stored>
    requires std::is_floating_point_v<Stored>
bool convert(Stored stored, T& value) {
    value = static_cast<T>(stored);
    return std::isfinite(value) || !std::isfinite(stored);
}

template <class T, class Stored>
    requires std::is_same_v<Stored, Half> || std::is_same_v<Stored, Bfloat16>
bool convert(Stored stored, T& value) {
    return convert(to_float(stored), value);
}

template <class T, class Stored>
    requires std::is_integral_v<Stored>
bool convert(Stored stored, T& value) {
    value = static_cast<T>(stored);
    // Exact if the significant bits, from the highest to the lowest that is set, fit T's.
    std::uint64_t magnitude = static_cast<std::make_unsigned_t<Stored>>(stored);
    if (stored < 0) {
        magnitude = std::uint64_t{1} + static_cast<std::make_unsigned_t<Stored>>(~stored);
    }
    const int lowest = std::countr_zero(magnitude);
    return magnitude == 0 || static_cast<int>(std::bit_width(magnitude)) - lowest <= std::numeric_limits<T>::digits;
}

template <class Stored, class T>
std::size_t decode_as(std::span<const std::byte> bytes, std::span<T> values) {
    for (std::size_t index = 0; index < values.size(); ++index) {
        Stored stored{};
        std::memcpy(&stored, bytes.data() + index * sizeof(Stored), sizeof(Stored));
        if (!convert(stored, values[index])) {
            return index;
        }
    }
    return values.size();
}

}  // namespace

std::string_view to_string(Dtype dtype) noexcept { return entry(dtype).name; }

std::int64_t bits(Dtype dtype) noexcept { return entry(dtype).bits; }

std::optional<Dtype> dtype_from_name(std::string_view name) noexcept {
    for (const Entry& known : kDtypes) {
        if (known.name == name) {
            return known.dtype;
        }
    }
    return std::nullopt;
}

bool is_readable(Dtype dtype) noexcept { return dtype < Dtype::F4; }

template <class T>
std::size_t decode(Dtype dtype, std::span<const std::byte> bytes, std::span<T> values) {
    switch (dtype) {
        case Dtype::BOOL:
            return decode_as<Boolean>(bytes, values);
        case Dtype::U8:
            return decode_as<std::uint8_t>(bytes, values);
        case Dtype::I8:
            return decode_as<std::int8_t>(bytes, values);
        case Dtype::I16:
            return decode_as<std::int16_t>(bytes, values);
        case Dtype::U16:
            return decode_as<std::uint16_t>(bytes, values);
        case Dtype::F16:
            return decode_as<Half>(bytes, values);
        case Dtype::BF16:
            return decode_as<Bfloat16>(bytes, values);
        case Dtype::I32:
            return decode_as<std::int32_t>(bytes, values);
        case Dtype::U32:
            return decode_as<std::uint32_t>(bytes, values);
        case Dtype::F32:
            return decode_as<float>(bytes, values);
        case Dtype::F64:
            return decode_as<double>(bytes, values);
        case Dtype::I64:
            return decode_as<std::int64_t>(bytes, values);
        case Dtype::U64:
            return decode_as<std::uint64_t>(bytes, values);
        default:
            fail(ErrorCode::unsupported, "elements of type ", to_string(dtype), " cannot be read");
    }
}

template std::size_t decode<float>(Dtype, std::span<const std::byte>, std::span<float>);
template std::size_t decode<double>(Dtype, std::span<const std::byte>, std::span<double>);

}  // namespace qkv::io
