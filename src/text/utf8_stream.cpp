#include <utility>

#include "core/utf8.hpp"
#include "qkv/text.hpp"

namespace qkv::text {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// Whether more bytes could make a character of `bytes`, which are none yet.
bool may_begin_character(std::string_view bytes) {
    // The longest characters: whatever begins one, begins one of those when continued in the extreme ways.
    for (const char filler : {'\x80', '\x90', '\x9F', '\xA0', '\xBF'}) {
        std::string longer(bytes);
        while (longer.size() < 4) {
            longer += filler;
            if (utf8_length(longer) == longer.size()) {
                return true;
            }
        }
    }
    return false;
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
    held_ += bytes;
    std::string shown;
    std::string_view rest = held_;
    while (!rest.empty()) {
        const std::size_t length = utf8_length(rest);
        if (length == 0 && may_begin_character(rest)) {
            break;
        }
        shown += length == 0 ? kReplacement : rest.substr(0, length);
        rest.remove_prefix(length == 0 ? 1 : length);
    }
    held_ = std::string(rest);
    return shown;
}

std::string Utf8Stream::finish() { return std::exchange(held_, {}).empty() ? "" : std::string(kReplacement); }

}  // namespace qkv::text
