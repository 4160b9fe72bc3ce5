// From the bytes of a stored element type to float and double.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include "qkv/io.hpp"

namespace qkv::io {

/// The type that the safetensors format calls `name`.
[[nodiscard]] std::optional<Dtype> dtype_from_name(std::string_view name) noexcept;

/// Whether decode can read it.
[[nodiscard]] bool is_readable(Dtype dtype) noexcept;

/// Whether `dtype` holds T as it is.
template <class T>
[[nodiscard]] constexpr bool stores(Dtype dtype) noexcept {
    return dtype == (sizeof(T) == sizeof(float) ? Dtype::F32 : Dtype::F64);
}

/// Converts little-endian elements of a readable type, which fill `bytes` exactly, to `values`. Gives the index of the
/// first that T cannot hold (a finite value that would become infinite, an integer that would be rounded, a BOOL that
/// is neither 0 nor 1), or values.size().
template <class T>
[[nodiscard]] std::size_t decode(Dtype dtype, std::span<const std::byte> bytes, std::span<T> values);

extern template std::size_t decode<float>(Dtype, std::span<const std::byte>, std::span<float>);
extern template std::size_t decode<double>(Dtype, std::span<const std::byte>, std::span<double>);

}  // namespace qkv::io
