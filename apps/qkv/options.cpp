#include "options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "qkv/error.hpp"
#include "qkv/explain.hpp"

namespace qkv::app {

namespace {

template <class Number>
std::optional<Number> parsed(const std::string& typed) {
    Number value{};
    const char* end = typed.data() + typed.size();
    const auto [stop, error] = std::from_chars(typed.data(), end, value);
    return error == std::errc{} && stop == end ? std::optional(value) : std::nullopt;
}

[[noreturn]] void refuse(const std::string& option, const std::string& typed, const std::string& expected) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} is {}; expected {}", option, explain::in_quotes(typed), expected));
}

}  // namespace

std::int64_t whole_number(const std::string& option, const std::string& typed, std::int64_t lowest,
                          std::int64_t highest) {
    const auto value = parsed<std::int64_t>(typed);
    if (!value || *value < lowest || *value > highest) {
        refuse(option, typed, fmt::format("a whole number from {} to {}", lowest, highest));
    }
    return *value;
}

std::optional<std::int64_t> whole_number(const std::string& option, const std::optional<std::string>& typed,
                                         std::int64_t lowest, std::int64_t highest) {
    return typed ? std::optional(whole_number(option, *typed, lowest, highest)) : std::nullopt;
}

std::uint64_t seed_number(const std::string& option, const std::string& typed) {
    const auto value = parsed<std::uint64_t>(typed);
    if (!value) {
        refuse(option, typed, "a whole number from 0 to 18446744073709551615");
    }
    return *value;
}

double real_number(const std::string& option, const std::string& typed) {
    const auto value = parsed<double>(typed);
    if (!value || !std::isfinite(*value)) {
        refuse(option, typed, "a number");
    }
    return *value;
}

std::size_t choice(const std::string& option, const std::string& typed, const std::vector<std::string>& choices) {
    const auto found = std::ranges::find(choices, typed);
    if (found == choices.end()) {
        refuse(option, typed, fmt::format("{}{}", fmt::join(choices, ", "), suggestion(typed, choices)));
    }
    return static_cast<std::size_t>(found - choices.begin());
}

std::string suggestion(const std::string& typed, const std::vector<std::string>& choices) {
    const std::string near = explain::nearest_word(typed, choices);
    return near.empty() ? "" : fmt::format(". Did you mean {}?", near);
}

}  // namespace qkv::app
