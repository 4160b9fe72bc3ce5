// Numbers in a file's metadata, which is text: the shortest digits that read back as the same number.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "qkv/io.hpp"

namespace qkv::models {

[[nodiscard]] std::string to_text(double value);

/// The entry `key`. Throws Error(format), naming file and key, if there is none.
[[nodiscard]] const std::string& entry(const io::Metadata& metadata, const std::string& key, const std::string& file);

/// The entry `key` as a number. Throws Error(format), naming file and key, unless it is one from `lowest` to `highest`.
[[nodiscard]] std::int64_t whole_entry(const io::Metadata& metadata, const std::string& key, std::int64_t lowest,
                                       std::int64_t highest, const std::string& file);
[[nodiscard]] double real_entry(const io::Metadata& metadata, const std::string& key, double lowest, double highest,
                                const std::string& file);

/// Whether every value is a finite number.
[[nodiscard]] bool finite(const Tensor& tensor);

/// The entry `key` as hexadecimal words of 32 bits, 8 digits each, and back.
[[nodiscard]] std::vector<std::uint32_t> words_entry(const io::Metadata& metadata, const std::string& key,
                                                     const std::string& file);
[[nodiscard]] std::string words_to_text(const std::vector<std::uint32_t>& words);

}  // namespace qkv::models
