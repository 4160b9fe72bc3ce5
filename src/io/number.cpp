#include "io/number.hpp"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <system_error>

namespace qkv::io {
namespace {

/// Whether a well-formed decimal number other than zero is below 1 in magnitude, looking at its text only: it may lie
/// outside the range of every floating-point type.
bool is_below_one(std::string_view text) noexcept {
    const std::size_t e = text.find_first_of("eE");
    const std::string_view digits = text.substr(0, e);
    const std::size_t point = digits.find('.') == digits.npos ? digits.size() : digits.find('.');
    const std::size_t first = digits.find_first_of("123456789");
    // The leading digit stands for digit * 10^(place + exponent).
    const std::int64_t place =
        static_cast<std::int64_t>(point) - static_cast<std::int64_t>(first) - (first < point ? 1 : 0);
    if (e == text.npos) {
        return place < 0;
    }
    std::string_view exponent_text = text.substr(e + 1);
    if (exponent_text.starts_with('+')) {
        exponent_text.remove_prefix(1);
    }
    std::int64_t exponent = 0;
    const auto result = std::from_chars(exponent_text.data(), exponent_text.data() + exponent_text.size(), exponent);
    if (result.ec == std::errc::result_out_of_range) {
        return exponent_text.starts_with('-');
    }
    return exponent < -place;
}

}  // namespace

ParsedFloat parse_float(std::string_view text) noexcept {
    float value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec == std::errc::invalid_argument || result.ptr != text.data() + text.size()) {
        return {0, kNotANumber};
    }
    if (result.ec == std::errc::result_out_of_range) {
        if (is_below_one(text)) {
            return {text.starts_with('-') ? -0.0F : 0.0F, nullptr};
        }
        return {0, "is beyond the largest float"};
    }
    if (!std::isfinite(value)) {
        return {0, "is not finite"};
    }
    return {value, nullptr};
}

}  // namespace qkv::io
