// Building error messages and checking arguments. Header-only, standard library only: every room may use it.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>

#include "qkv/error.hpp"

namespace qkv {

/// Concatenates anything that streams: `concat("dropout is ", p, "; expected 0 to 1")`.
template <class... Part>
[[nodiscard]] std::string concat(const Part&... part) {
    std::ostringstream text;
    (text << ... << part);
    return text.str();
}

template <class... Part>
[[noreturn]] void fail(ErrorCode code, const Part&... part) {
    throw Error(code, concat(part...));
}

/// a * b for sizes; throws Error(out_of_range) naming `what`, anything that streams, when the product does not fit 63
/// bits.
template <class What>
[[nodiscard]] std::int64_t checked_multiply(std::int64_t a, std::int64_t b, const What& what) {
    std::int64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product)) {
        fail(ErrorCode::out_of_range, what, ": ", a, " × ", b, " does not fit 64 bits");
    }
    return product;
}

}  // namespace qkv
