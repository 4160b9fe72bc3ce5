// What all tokenizers share, and the one of characters.
#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "qkv/text.hpp"

namespace qkv::text {

namespace {

/// Calls `take` for each character. Throws Error(invalid_argument) where `text` is not UTF-8.
template <class Take>
void for_each_character(std::string_view text, const Take& take) {
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t length = utf8_length(text.substr(at));
        if (length == 0) {
            fail(ErrorCode::invalid_argument, "the text is not UTF-8 at byte ", at,
                 "; expected UTF-8, or a tokenizer of bytes (bpe)");
        }
        take(text.substr(at, length));
        at += length;
    }
}

std::vector<std::string> characters_of(std::string_view text) {
    std::set<std::string_view> seen;  // the order of UTF-8 bytes is that of code points
    for_each_character(text, [&seen](std::string_view character) { seen.insert(character); });
    if (seen.empty() || seen.size() > static_cast<std::size_t>(kMaxVocabulary)) {
        fail(ErrorCode::invalid_argument, "the text has ", seen.size(), " different characters; expected 1 to ",
             kMaxVocabulary);
    }
    return {seen.begin(), seen.end()};
}

/// "'é' (U+00E9)": a character that a terminal may not show is known by its number.
std::string described(std::string_view character) {
    auto code = static_cast<std::uint32_t>(static_cast<std::uint8_t>(character.front()));
    code = character.size() == 1 ? code : code & (0xFFU >> (character.size() + 1));
    for (const char continuation : character.substr(1)) {
        code = code << 6U | (static_cast<std::uint8_t>(continuation) & 0x3FU);
    }
    std::array<char, 8> digits{};
    const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), code, 16);
    std::string hex(digits.data(), end);
    std::ranges::transform(hex, hex.begin(), [](char c) { return c >= 'a' ? static_cast<char>(c - 'a' + 'A') : c; });
    return concat("'", character, "' (U+", std::string(hex.size() < 4 ? 4 - hex.size() : 0, '0'), hex, ")");
}

std::vector<BpeTokenizer::Merge> parse_merges(std::string_view saved) {
    std::vector<std::int64_t> numbers;
    const char* at = saved.data();
    const char* const end = at + saved.size();
    while (at != end) {
        std::int64_t number = 0;
        const auto [stop, error] = std::from_chars(at, end, number);
        if (error != std::errc{} || (stop != end && *stop != ' ')) {
            fail(ErrorCode::format, "the merges of the tokenizer are malformed at byte ", at - saved.data());
        }
        numbers.push_back(number);
        at = stop == end ? end : stop + 1;
    }
    if (numbers.size() % 2 != 0) {
        fail(ErrorCode::format, "the merges of the tokenizer are ", numbers.size(), " numbers; expected pairs");
    }
    std::vector<BpeTokenizer::Merge> merges;
    for (std::size_t i = 0; i < numbers.size(); i += 2) {
        merges.emplace_back(numbers[i], numbers[i + 1]);
    }
    return merges;
}

}  // namespace

const std::string& Tokenizer::token(std::int64_t id) const {
    if (id < 0 || id >= vocab_size()) {
        fail(ErrorCode::out_of_range, "token id ", id, " is not in the vocabulary; expected 0 to ", vocab_size() - 1);
    }
    return tokens_[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids) const {
    std::string text;
    for (const std::int64_t id : ids) {
        text += token(id);
    }
    return text;
}

CharacterTokenizer::CharacterTokenizer(std::string_view text) : Tokenizer(characters_of(text)) {
    for (std::size_t id = 0; id < tokens_.size(); ++id) {
        ids_.emplace(tokens_[id], static_cast<std::int64_t>(id));
    }
}

std::vector<std::int64_t> CharacterTokenizer::encode(std::string_view text) const {
    std::vector<std::int64_t> ids;
    ids.reserve(text.size());
    for_each_character(text, [&](std::string_view character) {
        const auto found = ids_.find(character);
        if (found == ids_.end()) {
            fail(ErrorCode::invalid_argument, "the character ", described(character), " is not among the ",
                 vocab_size(), " that the model was trained on");
        }
        ids.push_back(found->second);
    });
    return ids;
}

std::string CharacterTokenizer::saved() const {
    std::string all;
    for (const std::string& token : tokens_) {
        all += token;
    }
    return all;
}

std::unique_ptr<Tokenizer> load_tokenizer(std::string_view kind, std::string_view saved) {
    try {
        std::unique_ptr<Tokenizer> loaded;
        if (kind == "char") {
            loaded = std::make_unique<CharacterTokenizer>(saved);
        } else if (kind == "bpe") {
            loaded = std::make_unique<BpeTokenizer>(parse_merges(saved));
        } else {
            fail(ErrorCode::format, "the tokenizer is of an unknown kind; expected char or bpe");
        }
        if (loaded->saved() != saved) {
            fail(ErrorCode::format, "the tokenizer is not written as it would be saved");
        }
        return loaded;
    } catch (const Error& error) {
        throw Error(error.code() == ErrorCode::invalid_argument ? ErrorCode::format : error.code(), error.what());
    }
}

}  // namespace qkv::text
