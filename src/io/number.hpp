// Numbers in text files, the same in every locale.
#pragma once

#include <string_view>

namespace qkv::io {

inline constexpr const char* kNotANumber = "is not a number";

struct ParsedFloat {
    float value = 0;
    /// What is wrong with it (kNotANumber, or another reason), or nullptr.
    const char* problem = nullptr;
};

/// The float nearest to a decimal number; what is too small for one becomes a zero of its sign. NaN, infinity and
/// finite numbers beyond the largest float are problems.
[[nodiscard]] ParsedFloat parse_float(std::string_view text) noexcept;

}  // namespace qkv::io
