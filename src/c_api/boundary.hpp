// Where C meets C++: every exception becomes a status and a message, and every pointer and struct is checked before it
// is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

#include "core/check.hpp"
#include "qkv/qkv.h"
#include "qkv/view.hpp"

namespace qkv::c_api {

/// The status of the exception that is being handled; its message becomes qkv_last_error().
[[nodiscard]] qkv_status status_of_exception() noexcept;

/// Runs `body`; nothing that it throws goes further.
template <class Body>
[[nodiscard]] qkv_status guarded(const Body& body) noexcept {
    try {
        body();
        return QKV_OK;
    } catch (...) {
        return status_of_exception();
    }
}

template <class T>
[[nodiscard]] T& required(T* pointer, const char* name) {
    if (pointer == nullptr) {
        fail(ErrorCode::invalid_argument, name, " is NULL; expected a pointer");
    }
    return *pointer;
}

/// *handle = make(), once it is known that there is a place for it: an assignment makes its right side first.
template <class Handle, class Make>
[[nodiscard]] qkv_status create(Handle** handle, const char* name, const Make& make) noexcept {
    return guarded([&] {
        Handle*& created = required(handle, name);
        created = make();
    });
}

/// Throws Error(unsupported) unless `size`, which a caller gave for the struct `name` of `known` bytes, is plausible
/// and holds nothing but zeros past `known`.
void check_struct_size(const void* given, std::size_t size, std::size_t known, const char* name);

/// The caller's struct as this library knows it: what the caller's lacks is 0. NULL: all 0.
template <class T>
[[nodiscard]] T read_struct(const T* given, const char* name) {
    static_assert(std::is_trivially_copyable_v<T> && offsetof(T, struct_size) == 0);
    static_assert(sizeof(std::size_t) == 8 && sizeof(T) % 8 == 0, "a struct cut at 8 bytes must not halve a member");
    T read{};
    if (given != nullptr) {
        std::size_t size = 0;
        std::memcpy(&size, given, sizeof(size));
        check_struct_size(given, size, sizeof(T), name);
        std::memcpy(&read, given, size < sizeof(T) ? size : sizeof(T));
    }
    return read;
}

/// Fills the caller's struct as far as the caller knows it; its struct_size stays.
template <class T>
void write_struct(T* given, T written, const char* name) {
    written.struct_size = read_struct(&required(given, name), name).struct_size;
    std::memcpy(given, &written, written.struct_size < sizeof(T) ? written.struct_size : sizeof(T));
}

/// 0 stands for a setting's default.
template <class T>
[[nodiscard]] T or_default(T value, T fallback) {
    return value == T{} ? fallback : value;
}

/// `value` as one of an enumeration's values 0 .. last.
template <class Enum>
[[nodiscard]] Enum checked_enum(std::int32_t value, Enum last, const char* name) {
    if (value < 0 || value > static_cast<std::int32_t>(last)) {
        fail(ErrorCode::unsupported, name, " is ", value, "; expected 0 to ", static_cast<std::int32_t>(last));
    }
    return static_cast<Enum>(value);
}

[[nodiscard]] bool checked_flag(std::int32_t value, const char* name);
/// Throws Error(unsupported) unless both name the CPU.
void check_device(qkv_device device, std::int32_t device_id, const char* name);

[[nodiscard]] TensorView to_view(const qkv_tensor* tensor, const char* name);
[[nodiscard]] std::optional<TensorView> to_optional_view(const qkv_tensor* tensor, const char* name);
/// NULL goes with 0 numbers.
[[nodiscard]] std::span<const std::int64_t> to_span(const std::int64_t* numbers, std::int64_t count, const char* name);
/// NULL goes with 0 bytes, and means none.
[[nodiscard]] std::span<std::byte> to_workspace(void* workspace, std::size_t bytes);

}  // namespace qkv::c_api
