// Text as token ids, and back: by characters, or by byte pairs learned from a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qkv/export.h"

namespace qkv {
namespace text QKV_EXPORT {

/// The most tokens of a vocabulary, and the longest token: a longer one is no token that training would make.
inline constexpr std::int64_t kMaxVocabulary = 65'536;
inline constexpr std::size_t kMaxTokenBytes = 64;
/// A byte-pair vocabulary begins with the 256 bytes.
inline constexpr std::int64_t kBytes = 256;

/// A vocabulary: ids from 0, each the bytes of one token. Tokenizers do not change, so threads may share one.
class Tokenizer {
public:
    Tokenizer(const Tokenizer&) = delete;
    Tokenizer& operator=(const Tokenizer&) = delete;
    Tokenizer(Tokenizer&&) = delete;
    Tokenizer& operator=(Tokenizer&&) = delete;
    virtual ~Tokenizer() = default;

    /// The tokens of `text`; decode() gives the same bytes back. Throws Error(invalid_argument) naming what it lacks.
    [[nodiscard]] virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
    /// Throws Error(out_of_range) for an id that is none.
    [[nodiscard]] std::string decode(std::span<const std::int64_t> ids) const;

    [[nodiscard]] std::int64_t vocab_size() const noexcept { return static_cast<std::int64_t>(tokens_.size()); }
    /// The bytes of one token. Throws Error(out_of_range) for an id that is none.
    [[nodiscard]] const std::string& token(std::int64_t id) const;

    /// "char" or "bpe", and the rest of what load_tokenizer needs to make the same one again: valid UTF-8.
    [[nodiscard]] virtual std::string_view kind() const noexcept = 0;
    [[nodiscard]] virtual std::string saved() const = 0;

protected:
    explicit Tokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}

    std::vector<std::string> tokens_;
};

/// One token a character (Unicode code point), in the order of code points.
class CharacterTokenizer final : public Tokenizer {
public:
    /// The characters that occur in `text`. Throws Error(invalid_argument) if it is empty, is not UTF-8 (saying where)
    /// or has more than kMaxVocabulary characters.
    explicit CharacterTokenizer(std::string_view text);

    /// Throws Error(invalid_argument) for characters that the vocabulary lacks, naming the first, and for bytes that
    /// are not UTF-8.
    [[nodiscard]] std::vector<std::int64_t> encode(std::string_view text) const override;
    [[nodiscard]] std::string_view kind() const noexcept override { return "char"; }
    /// All characters, one after the other.
    [[nodiscard]] std::string saved() const override;

private:
    std::map<std::string_view, std::int64_t> ids_;  // views of tokens_
};

/// Byte-pair encoding over bytes (Sennrich, Haddow & Birch 2016; on bytes as in GPT-2, Radford et al. 2019): ids below
/// 256 are the bytes, each further one joins two before it. Every string of bytes has tokens.
///
/// Text is cut into pieces that no token crosses: a run of ASCII letters and bytes above 127, of digits, of blanks, or
/// of other bytes, with one space before it where there is one; a run longer than kMaxTokenBytes is cut.
class BpeTokenizer final : public Tokenizer {
public:
    using Merge = std::pair<std::int64_t, std::int64_t>;

    /// Merge number i makes id 256 + i of two smaller ids. Throws Error(invalid_argument) for one that does not, that
    /// repeats an earlier one, or whose token would be longer than kMaxTokenBytes, and for too many.
    explicit BpeTokenizer(std::vector<Merge> merges);

    /// Learns merges from `text` until there are vocab_size tokens: each time the pair that occurs most often, of
    /// several the one with the smaller ids. Ends earlier when no pair occurs twice. Throws Error(invalid_argument)
    /// unless 256 <= vocab_size <= kMaxVocabulary.
    [[nodiscard]] static std::unique_ptr<BpeTokenizer> learned(std::string_view text, std::int64_t vocab_size);

    [[nodiscard]] std::vector<std::int64_t> encode(std::string_view text) const override;
    [[nodiscard]] std::string_view kind() const noexcept override { return "bpe"; }
    /// The merges as decimal ids with blanks between them.
    [[nodiscard]] std::string saved() const override;

private:
    [[nodiscard]] std::vector<std::int64_t> encode_piece(std::string_view piece) const;

    std::vector<Merge> merges_;
    std::map<Merge, std::int64_t> ranks_;
};

/// The tokenizer of that kind() and saved(). Outside data is hostile: throws Error(format) unless both are what a
/// tokenizer saved.
[[nodiscard]] std::unique_ptr<Tokenizer> load_tokenizer(std::string_view kind, std::string_view saved);

/// Tokens of a generated text arrive one by one and may end inside a character: this holds such bytes back.
class Utf8Stream {
public:
    /// What can be shown now: whole characters only; bytes that can no longer become one as U+FFFD.
    [[nodiscard]] std::string push(std::string_view bytes);
    /// What is left at the end, as U+FFFD.
    [[nodiscard]] std::string finish();

private:
    std::string held_;
};

}  // namespace text QKV_EXPORT
}  // namespace qkv
