// A saved tokenizer of a model file: refused with an Error, or one that takes its own text there and back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "core/utf8.hpp"
#include "qkv/error.hpp"
#include "qkv/text.hpp"

/// The first byte chooses the kind; up to a byte 0 follows the vocabulary, then a text.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string input(reinterpret_cast<const char*>(data) + 1, size - 1);
    const std::string_view kind = data[0] % 2 == 0 ? "char" : "bpe";
    const std::size_t end = input.find('\0');
    const std::string text = end == std::string::npos ? "" : input.substr(end + 1);
    try {
        const auto tokenizer = qkv::text::load_tokenizer(kind, input.substr(0, end));
        const auto ids = tokenizer->encode(text);
        if (tokenizer->decode(ids) != text) {
            std::abort();
        }
        qkv::text::Utf8Stream stream;
        std::string shown;
        for (const std::int64_t id : ids) {
            shown += stream.push(tokenizer->token(id));
        }
        shown += stream.finish();
        const bool valid = qkv::is_valid_utf8(text);
        if (!qkv::is_valid_utf8(shown) || (valid && shown != text)) {
            std::abort();
        }
        (void)qkv::text::BpeTokenizer::learned(text, qkv::text::kBytes + 20);
    } catch (const qkv::Error&) {  // refused: the other good outcome; anything else thrown is a finding
    }
    return 0;
}
