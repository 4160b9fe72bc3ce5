#include "models/metadata.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <memory>

#include "core/check.hpp"
#include "io/quote.hpp"

namespace qkv::models {

namespace {

constexpr std::size_t kWordDigits = 8;

/// All of `text` as a number, and nothing after it.
template <class Number, class... Base>
bool parse(std::string_view text, Number& value, Base... base) {
    const char* const begin = std::to_address(text.begin());
    const char* const end = std::to_address(text.end());
    const auto [stop, error] = std::from_chars(begin, end, value, base...);
    return error == std::errc{} && stop == end;
}

template <class Number>
Number number_entry(const io::Metadata& metadata, const std::string& key, Number lowest, Number highest,
                    const std::string& file) {
    const std::string& text = entry(metadata, key, file);
    Number value{};
    if (!parse(text, value) || !(value >= lowest && value <= highest)) {
        fail(ErrorCode::format, file, ": ", key, " is ", io::quote(text), "; expected a number from ", lowest, " to ",
             highest);
    }
    return value;
}

}  // namespace

bool finite(const Tensor& tensor) {
    return std::ranges::all_of(tensor.values(), [](float value) { return std::isfinite(value); });
}

std::string to_text(double value) {
    std::array<char, 32> digits{};
    const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), value);
    return {digits.data(), end};
}

const std::string& entry(const io::Metadata& metadata, const std::string& key, const std::string& file) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) {
        fail(ErrorCode::format, file, ": its metadata has no ", key, "; expected a file that qkv train wrote");
    }
    return found->second;
}

std::int64_t whole_entry(const io::Metadata& metadata, const std::string& key, std::int64_t lowest,
                         std::int64_t highest, const std::string& file) {
    return number_entry(metadata, key, lowest, highest, file);
}

double real_entry(const io::Metadata& metadata, const std::string& key, double lowest, double highest,
                  const std::string& file) {
    return number_entry(metadata, key, lowest, highest, file);
}

std::vector<std::uint32_t> words_entry(const io::Metadata& metadata, const std::string& key, const std::string& file) {
    const std::string_view text = entry(metadata, key, file);
    std::vector<std::uint32_t> words(text.size() / kWordDigits);
    for (std::size_t i = 0; i < words.size(); ++i) {
        if (!parse(text.substr(i * kWordDigits, kWordDigits), words[i], 16)) {
            fail(ErrorCode::format, file, ": ", key, " is no list of hexadecimal words");
        }
    }
    return words;
}

std::string words_to_text(const std::vector<std::uint32_t>& words) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : words) {
        for (unsigned shift = 32; shift > 0; shift -= 4) {
            text += kDigits[word >> (shift - 4) & 0xFU];
        }
    }
    return text;
}

}  // namespace qkv::models
