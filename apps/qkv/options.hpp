// Option values as they were typed, turned into numbers and choices with errors that name the option.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace qkv::app {

/// A whole number within [lowest, highest]. Throws Error(invalid_argument) naming `option` and what was typed.
[[nodiscard]] std::int64_t whole_number(const std::string& option, const std::string& typed, std::int64_t lowest,
                                        std::int64_t highest);
/// As whole_number, for an option that may be absent.
[[nodiscard]] std::optional<std::int64_t> whole_number(const std::string& option,
                                                       const std::optional<std::string>& typed, std::int64_t lowest,
                                                       std::int64_t highest);

/// A seed from 0 to 2⁶⁴−1.
[[nodiscard]] std::uint64_t seed_number(const std::string& option, const std::string& typed);

/// A finite number.
[[nodiscard]] double real_number(const std::string& option, const std::string& typed);

/// Place of `typed` in `choices`. Throws Error(invalid_argument) with a suggestion.
[[nodiscard]] std::size_t choice(const std::string& option, const std::string& typed,
                                 const std::vector<std::string>& choices);

/// ". Did you mean …?", or nothing when no choice is near.
[[nodiscard]] std::string suggestion(const std::string& typed, const std::vector<std::string>& choices);

}  // namespace qkv::app
