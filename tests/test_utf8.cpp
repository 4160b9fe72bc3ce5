#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "core/utf8.hpp"

namespace qkv {
namespace {

/// Encodes a code point without looking at whether it may be encoded.
std::string encode(std::uint32_t code, std::size_t length) {
    if (length == 1) {
        return {static_cast<char>(code)};
    }
    std::string bytes(length, '\0');
    for (std::size_t index = length - 1; index > 0; --index) {
        bytes[index] = static_cast<char>(0x80U | (code & 0x3FU));
        code >>= 6U;
    }
    bytes[0] = static_cast<char>(((0xF00U >> length) & 0xFFU) | code);
    return bytes;
}

TEST(Utf8, ExactlyTheCodePointsInTheirShortestForm) {
    for (std::uint32_t code = 0; code < 0x200000; ++code) {
        const std::size_t shortest = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
        const bool exists = code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
        for (std::size_t length = shortest; length <= 4; ++length) {
            ASSERT_EQ(is_valid_utf8(encode(code, length)), exists && length == shortest) << code << " in " << length;
        }
    }
}

TEST(Utf8, FirstInvalidByte) {
    EXPECT_EQ(first_invalid_utf8(""), std::string::npos);
    EXPECT_EQ(first_invalid_utf8("aé€😀"), std::string::npos);
    EXPECT_EQ(first_invalid_utf8("aé\x80"), 3U);
    EXPECT_EQ(first_invalid_utf8("a\xE2\x82"), 1U);
    EXPECT_EQ(first_invalid_utf8("\xE2\x82(\xA9"), 0U);
    EXPECT_EQ(first_invalid_utf8("\xFE"), 0U);
    EXPECT_EQ(first_invalid_utf8("\xF8\x88\x80\x80\x80"), 0U);
    EXPECT_EQ(utf8_length("€x"), 3U);
}

}  // namespace
}  // namespace qkv
