// One value of a Python call as the C++ type that a function wants; what does not fit is refused by name.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <type_traits>

#include "raise.hpp"

namespace qkv::python {

/// Throws TypeError: "`name` is a `value's type`; expected `expected`".
[[noreturn]] void refuse(nb::handle value, const std::string& name, const std::string& expected);

/// A whole number: an int, or what has __index__ (NumPy's integers), but no bool. Throws TypeError, or ValueError past
/// 64 bits, naming `name`.
[[nodiscard]] std::int64_t to_integer(nb::handle value, const char* name,
                                      const std::string& expected = "a whole number");
[[nodiscard]] std::uint64_t to_seed(nb::handle value, const char* name);
/// A float, or what has __float__ or __index__, but no bool. Throws TypeError naming `name`.
[[nodiscard]] double to_number(nb::handle value, const char* name, const std::string& expected = "a number");

namespace detail {

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

/// "a qkv.Mask"
[[nodiscard]] std::string name_of(nb::handle type);

/// What `take` says that it expects.
template <class T>
[[nodiscard]] std::string expected() {
    if constexpr (is_optional<T>) {
        return expected<typename T::value_type>() + " or None";
    } else if constexpr (std::is_pointer_v<T>) {
        return name_of(nb::type<std::remove_cv_t<std::remove_pointer_t<T>>>()) + " or None";
    } else if constexpr (std::is_same_v<T, bool>) {
        return "True or False";
    } else if constexpr (std::is_same_v<T, double>) {
        return "a number";
    } else if constexpr (std::is_integral_v<T>) {
        return "a whole number";
    } else if constexpr (std::is_same_v<T, std::string>) {
        return "a str";
    } else if constexpr (std::is_same_v<T, std::filesystem::path>) {
        return "a str or an os.PathLike";
    } else {
        return name_of(nb::type<T>());
    }
}

}  // namespace detail

/// `value` as a T: a number, a bool, a std::string, a path, a std::optional of those (None is nothing), a reference to
/// an object of a bound class, or a pointer to one (None is null). A handle passes as it is. Throws TypeError or
/// ValueError naming `name`.
template <class T>
[[nodiscard]] decltype(auto) take(nb::handle value, const char* name) {
    using Value = std::remove_cvref_t<T>;
    if constexpr (std::is_same_v<Value, nb::handle>) {
        return value;
    } else if constexpr (detail::is_optional<Value>) {
        using Inner = typename Value::value_type;
        if (value.is_none()) {
            return Value();
        }
        if constexpr (std::is_same_v<Inner, double>) {
            return Value(to_number(value, name, detail::expected<Value>()));
        } else {
            return Value(to_integer(value, name, detail::expected<Value>()));
        }
    } else if constexpr (std::is_same_v<Value, std::int64_t>) {
        return to_integer(value, name);
    } else if constexpr (std::is_same_v<Value, std::uint64_t>) {
        return to_seed(value, name);
    } else if constexpr (std::is_same_v<Value, double>) {
        return to_number(value, name);
    } else if constexpr (std::is_same_v<Value, bool> || std::is_same_v<Value, std::string> ||
                         std::is_same_v<Value, std::filesystem::path>) {
        Value result{};
        if (!nb::try_cast(value, result)) {
            refuse(value, name, detail::expected<Value>());
        }
        return result;
    } else if constexpr (std::is_pointer_v<Value>) {
        std::remove_cv_t<std::remove_pointer_t<Value>>* found = nullptr;
        if (!value.is_none() && !nb::try_cast(value, found)) {
            refuse(value, name, detail::expected<Value>());
        }
        return static_cast<Value>(found);
    } else {
        Value* found = nullptr;
        if (!nb::try_cast(value, found) || found == nullptr) {
            refuse(value, name, detail::expected<Value>());
        }
        return static_cast<Value&>(*found);
    }
}

}  // namespace qkv::python
