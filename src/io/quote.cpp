#include "io/quote.hpp"

#include <array>
#include <cstdint>
#include <cstdio>

#include "core/utf8.hpp"

namespace qkv::io {
namespace {

constexpr std::size_t kLongest = 80;

std::uint32_t code_point(std::string_view bytes) {
    constexpr std::array<std::uint32_t, 5> kLeadBits{0, 0x7F, 0x1F, 0x0F, 0x07};
    std::uint32_t value = static_cast<std::uint8_t>(bytes[0]) & kLeadBits[bytes.size()];
    for (const char byte : bytes.substr(1)) {
        value = value << 6U | (static_cast<std::uint8_t>(byte) & 0x3FU);
    }
    return value;
}

bool is_confusing(std::uint32_t code) {
    return code < 0x20 || (code >= 0x7F && code < 0xA0)  // C0, DEL, C1
           || (code >= 0x200B && code <= 0x200F)         // zero width, direction marks
           || (code >= 0x2028 && code <= 0x202E)         // line separators, bidirectional overrides
           || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
}

std::string hex(const char* format, std::uint32_t value) {
    std::array<char, 16> text{};
    (void)std::snprintf(text.data(), text.size(), format, value);
    return text.data();
}

}  // namespace

std::string quote(std::string_view text) {
    std::string quoted = "\"";
    std::size_t offset = 0;
    while (offset < text.size() && offset < kLongest) {
        const std::size_t length = utf8_length(text.substr(offset));
        if (length == 0) {
            quoted += hex("\\x%02x", static_cast<std::uint8_t>(text[offset]));
            offset += 1;
            continue;
        }
        const std::string_view character = text.substr(offset, length);
        const std::uint32_t code = code_point(character);
        if (is_confusing(code)) {
            quoted += hex("\\u{%x}", code);
        } else if (character == "\"" || character == "\\") {
            quoted.append("\\").append(character);
        } else {
            quoted += character;
        }
        offset += length;
    }
    if (offset < text.size()) {
        quoted += "...";
    }
    return quoted + "\"";
}

}  // namespace qkv::io
