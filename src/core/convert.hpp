// Reading any storage type as the type of computation, and writing it back. The only place that looks at a DType.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "qkv/types.hpp"

namespace qkv::detail {

/// Calls visit(storage pointer) with the pointer typed as `dtype` says.
template <class Byte, class Visit>
void with_storage(DType dtype, Byte* data, Visit visit) {
    constexpr bool reads = std::is_const_v<Byte>;
    const auto typed = [&]<class T>(T*) { visit(reinterpret_cast<std::conditional_t<reads, const T, T>*>(data)); };
    switch (dtype) {
        case DType::f32:
            return typed(static_cast<float*>(nullptr));
        case DType::bf16:
            return typed(static_cast<BFloat16*>(nullptr));
        case DType::f16:
            return typed(static_cast<Float16*>(nullptr));
        case DType::f64:
            return typed(static_cast<double*>(nullptr));
        case DType::boolean:
            return typed(static_cast<std::uint8_t*>(nullptr));
    }
}

template <class To, class From>
[[nodiscard]] inline To convert(From value) noexcept {
    if constexpr (std::is_same_v<From, To>) {
        return value;
    } else if constexpr (std::is_same_v<To, BFloat16> || std::is_same_v<To, Float16>) {
        return To(static_cast<float>(value));
    } else if constexpr (std::is_same_v<From, BFloat16> || std::is_same_v<From, Float16>) {
        return static_cast<To>(static_cast<float>(value));
    } else {
        return static_cast<To>(value);
    }
}

/// to[i] ← element i of a strided row.
template <class A>
void load(A* to, const std::byte* from, DType dtype, std::int64_t stride, std::int64_t count) {
    with_storage(dtype, from, [&](auto* source) {
        if (stride == 1) {
            for (std::int64_t i = 0; i < count; ++i) {
                to[i] = convert<A>(source[i]);
            }
        } else {
            for (std::int64_t i = 0; i < count; ++i) {
                to[i] = convert<A>(source[i * stride]);
            }
        }
    });
}

/// Element i of a strided row ← from[i].
template <class A>
void store(std::byte* to, DType dtype, std::int64_t stride, const A* from, std::int64_t count) {
    with_storage(dtype, to, [&](auto* target) {
        using T = std::remove_pointer_t<decltype(target)>;
        for (std::int64_t i = 0; i < count; ++i) {
            target[i * stride] = convert<T>(from[i]);
        }
    });
}

}  // namespace qkv::detail
