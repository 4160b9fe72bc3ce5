// Tokenizers: characters and byte pairs, round trips, hostile vocabularies, bytes that arrive one by one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "core/utf8.hpp"
#include "qkv/random.hpp"
#include "qkv/text.hpp"
#include "support/expect_error.hpp"
#include "text/pieces.hpp"

namespace qkv::text {
namespace {

using testing::ElementsAre;

std::string random_bytes(std::int64_t count, std::uint32_t kinds, Generator& generator) {
    std::string bytes;
    for (std::int64_t i = 0; i < count; ++i) {
        bytes += static_cast<char>(static_cast<unsigned char>(generator.random() % kinds));
    }
    return bytes;
}

std::vector<std::string> pieces_of(std::string_view text) {
    std::vector<std::string> pieces;
    for_each_piece(text, [&pieces](std::string_view piece) { pieces.emplace_back(piece); });
    return pieces;
}

TEST(CharacterTokenizer, HasTheCharactersInOrder) {
    const CharacterTokenizer tokenizer("ba€b\n日😀é");
    EXPECT_EQ(tokenizer.vocab_size(), 7);
    EXPECT_EQ(tokenizer.saved(), "\nabé€日😀");
    EXPECT_THAT(tokenizer.encode("a😀\n"), ElementsAre(1, 6, 0));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("é日€bab\n")), "é日€bab\n");
    EXPECT_THAT(tokenizer.encode(""), ElementsAre());
}

TEST(CharacterTokenizer, NamesWhatItLacks) {
    const CharacterTokenizer tokenizer("abc");
    EXPECT_ERROR(tokenizer.encode("ab€"), ErrorCode::invalid_argument, "'€' (U+20AC) is not among the 3");
    EXPECT_ERROR(tokenizer.encode("a\x07"), ErrorCode::invalid_argument, "(U+0007)");
    EXPECT_ERROR(tokenizer.encode("a\xff"), ErrorCode::invalid_argument, "not UTF-8 at byte 1");
    EXPECT_ERROR(CharacterTokenizer(""), ErrorCode::invalid_argument, "0 different characters");
    EXPECT_ERROR(tokenizer.decode(std::vector<std::int64_t>{3}), ErrorCode::out_of_range, "token id 3");
    EXPECT_ERROR(tokenizer.token(-1), ErrorCode::out_of_range, "token id -1");
}

TEST(Pieces, CutWhereTheKindOfByteChanges) {
    EXPECT_THAT(pieces_of("The cat,  12 éa\n x"), ElementsAre("The", " cat", ",", " ", " 12", " éa", "\n", " x"));
    EXPECT_THAT(pieces_of(" "), ElementsAre(" "));
    EXPECT_THAT(pieces_of("a  "), ElementsAre("a", "  "));
    EXPECT_THAT(pieces_of(std::string(130, 'x')),
                ElementsAre(std::string(64, 'x'), std::string(64, 'x'), std::string(2, 'x')));
}

TEST(Pieces, AreTogetherTheText) {
    Generator generator(3);
    for (int i = 0; i < 200; ++i) {
        const std::string text = random_bytes(generator.random() % 300, i % 2 == 0 ? 256 : 50, generator);
        std::string joined;
        for (const std::string& piece : pieces_of(text)) {
            EXPECT_LE(piece.size(), kMaxTokenBytes);
            joined += piece;
        }
        ASSERT_EQ(joined, text);
    }
}

/// Byte-pair learning as it is defined: count all pairs anew for every merge.
std::vector<BpeTokenizer::Merge> learned_plainly(const std::string& text, std::int64_t vocab_size) {
    std::vector<std::vector<std::int64_t>> pieces;
    for (const std::string& piece : pieces_of(text)) {
        pieces.emplace_back();
        for (const char byte : piece) {
            pieces.back().push_back(static_cast<unsigned char>(byte));
        }
    }
    std::vector<BpeTokenizer::Merge> merges;
    for (std::int64_t id = kBytes; id < vocab_size; ++id) {
        std::map<BpeTokenizer::Merge, std::int64_t> counts;
        for (const auto& piece : pieces) {
            for (std::size_t i = 1; i < piece.size(); ++i) {
                ++counts[{piece[i - 1], piece[i]}];
            }
        }
        BpeTokenizer::Merge best;
        std::int64_t most = 1;
        for (const auto& [merge, count] : counts) {  // in the order of ids: the first of equals wins
            if (count > most) {
                most = count;
                best = merge;
            }
        }
        if (most == 1) {
            break;
        }
        merges.push_back(best);
        for (auto& piece : pieces) {
            std::vector<std::int64_t> joined;
            for (std::size_t i = 0; i < piece.size(); ++i) {
                if (i + 1 < piece.size() && BpeTokenizer::Merge{piece[i], piece[i + 1]} == best) {
                    joined.push_back(id);
                    ++i;
                } else {
                    joined.push_back(piece[i]);
                }
            }
            piece = joined;
        }
    }
    return merges;
}

TEST(BpeTokenizer, LearnsWhatTheDefinitionSays) {
    Generator generator(7);
    for (int i = 0; i < 30; ++i) {
        std::string text;
        for (int word = 0; word < 60; ++word) {
            text += (word % 7 == 0 ? ", " : " ") + random_bytes(1 + generator.random() % 6, 3, generator);
            for (char& byte : text) {
                byte = byte < 3 ? static_cast<char>('a' + byte) : byte;
            }
        }
        const auto learned = BpeTokenizer::learned(text, kBytes + 40);
        EXPECT_EQ(learned->saved(), BpeTokenizer(learned_plainly(text, kBytes + 40)).saved()) << text;
        EXPECT_LT(learned->encode(text).size(), text.size() / 2);
    }
}

TEST(BpeTokenizer, TokensOfAWordAreThoseOfItsTraining) {
    const auto tokenizer = BpeTokenizer::learned("low low low lower lower", kBytes + 3);
    // l+o (5 times, as o+w, but of smaller ids), lo+w (5), then the space before it (4)
    EXPECT_EQ(tokenizer->token(256), "lo");
    EXPECT_EQ(tokenizer->token(257), "low");
    EXPECT_EQ(tokenizer->token(258), " low");
    EXPECT_THAT(tokenizer->encode(" low"), ElementsAre(258));
    EXPECT_THAT(tokenizer->encode("xlo"), ElementsAre('x', 256));
}

TEST(BpeTokenizer, EveryStringOfBytesComesBack) {
    Generator generator(11);
    const auto tokenizer = BpeTokenizer::learned(random_bytes(4000, 6, generator) + "the the übel übel 日本 日本", 400);
    for (int i = 0; i < 300; ++i) {
        const std::string text = random_bytes(generator.random() % 200, i % 2 == 0 ? 256 : 6, generator);
        ASSERT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    }
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("日本 übel the")), "日本 übel the");
}

TEST(BpeTokenizer, EndsWhenNothingRepeats) {
    EXPECT_EQ(BpeTokenizer::learned("abc", 300)->vocab_size(), kBytes);
    EXPECT_EQ(BpeTokenizer::learned("", 300)->vocab_size(), kBytes);
    EXPECT_ERROR(BpeTokenizer::learned("abc", 255), ErrorCode::invalid_argument, "vocab_size is 255");
    EXPECT_ERROR(BpeTokenizer::learned("abc", 65'537), ErrorCode::invalid_argument, "vocab_size is 65537");
}

TEST(LoadTokenizer, MakesTheSameAgain) {
    const CharacterTokenizer characters("zebra ü");
    const auto pairs = BpeTokenizer::learned("the theme of the thesis is the thing", 270);
    for (const Tokenizer* tokenizer :
         {static_cast<const Tokenizer*>(&characters), static_cast<const Tokenizer*>(pairs.get())}) {
        const auto loaded = load_tokenizer(tokenizer->kind(), tokenizer->saved());
        EXPECT_EQ(loaded->kind(), tokenizer->kind());
        EXPECT_EQ(loaded->saved(), tokenizer->saved());
        EXPECT_EQ(loaded->encode("ere"), tokenizer->encode("ere"));
    }
}

TEST(LoadTokenizer, RefusesWhatNoTokenizerSaved) {
    const auto refused = [](const char* kind, const std::string& saved, const char* part) {
        EXPECT_ERROR(load_tokenizer(kind, saved), ErrorCode::format, part);
    };
    refused("wordpiece", "x", "unknown kind");
    refused("char", "", "0 different characters");
    refused("char", "ba", "not written as");
    refused("char", "aab", "not written as");
    refused("char", "a\xff", "not UTF-8");
    refused("bpe", "97", "expected pairs");
    refused("bpe", "97 98 ", "not written as");
    refused("bpe", "97 x", "malformed at byte 3");
    refused("bpe", "97  98", "malformed");
    refused("bpe", "97 256", "expected ids from 0 to 255");
    refused("bpe", "-1 98", "expected ids from 0");
    refused("bpe", "97 98 97 98", "as an earlier one does");
    refused("bpe", "99999999999999999999 1", "malformed");
    // Each merge doubles the token: 64 bytes after six, and the seventh is refused before it takes memory.
    std::string doubling = "97 97";
    for (int id = 256; id < 262; ++id) {
        doubling += " " + std::to_string(id) + " " + std::to_string(id);
    }
    refused("bpe", doubling, "makes a token of 128 bytes");
}

TEST(Utf8Stream, ShowsWholeCharactersOnly) {
    Utf8Stream stream;
    EXPECT_EQ(stream.push("a\xE2"), "a");
    EXPECT_EQ(stream.push("\x82"), "");
    EXPECT_EQ(stream.push("\xAC"
                          "b"),
              "€b");
    EXPECT_EQ(stream.push("\xF0\x9F\x98"), "");
    EXPECT_EQ(stream.finish(), "\uFFFD");
    EXPECT_EQ(stream.finish(), "");
    EXPECT_EQ(stream.push("\xFF\x80x"), "\uFFFD\uFFFDx");
    EXPECT_EQ(stream.push("\xED\xA0"), "\uFFFD\uFFFD");  // the beginning of a surrogate is the beginning of nothing
    EXPECT_EQ(stream.push("\xE2("), "\uFFFD(");
}

TEST(Utf8Stream, GivesTheTextWhateverTheCuts) {
    const std::string text = "aé€日😀\n\u07ff\u0800\uffff\U00010000\U0010ffff";
    for (std::size_t cut = 1; cut < 5; ++cut) {
        Utf8Stream stream;
        std::string shown;
        for (std::size_t at = 0; at < text.size(); at += cut) {
            shown += stream.push(std::string_view(text).substr(at, cut));
            ASSERT_TRUE(is_valid_utf8(shown));
        }
        EXPECT_EQ(shown + stream.finish(), text);
    }
}

}  // namespace
}  // namespace qkv::text
