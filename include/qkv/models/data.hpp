// What a language model learns from: a text, or a task made up on the fly.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qkv/export.h"
#include "qkv/random.hpp"
#include "qkv/text.hpp"

namespace qkv {
namespace models QKV_EXPORT {

/// Sequences [sequences, tokens] row-major, and for each token the one that should follow it; kNoTarget where nothing
/// can be known, so that it counts for nothing.
struct Batch {
    std::int64_t sequences = 0;
    std::vector<std::int64_t> ids, targets;
};

inline constexpr std::int64_t kNoTarget = -100;

/// Where batches come from.
class Data {
public:
    Data() = default;
    Data(const Data&) = delete;
    Data& operator=(const Data&) = delete;
    Data(Data&&) = delete;
    Data& operator=(Data&&) = delete;
    virtual ~Data() = default;

    /// Sequences to learn from, drawn from `generator`.
    [[nodiscard]] virtual Batch draw(std::int64_t sequences, Generator& generator) const = 0;
    /// Sequences kept for judging: the same ones in every call, at most so many. Of a text they are never learned from;
    /// of a task they are drawn apart, and one with few letters asks the same in training, too.
    [[nodiscard]] virtual Batch validation(std::int64_t sequences) const = 0;
    /// Tells other data from these.
    [[nodiscard]] virtual std::string fingerprint() const = 0;
};

/// The longest text in tokens: below it, places are drawn as torch.randint draws them, 32 bits each.
inline constexpr std::int64_t kMaxTextTokens = (std::int64_t{1} << 28) - 1;

/// What the files hold, one after the other. Throws Error(io) for one that cannot be read, Error(format) for one that
/// is empty or no text (not UTF-8, or with a NUL in it), naming file and place, and for more than kMaxTextTokens bytes.
[[nodiscard]] std::string read_text(const std::vector<std::filesystem::path>& files);

/// Windows of a text. The last tenth, at least one window, is for validation; training windows begin at
/// torch.randint(training tokens − context, (sequences,)).
class TextData final : public Data {
public:
    /// `ids` is the text. Throws Error(out_of_range) if it is shorter than two windows of context + 1 tokens, one for
    /// training and one for validation, or longer than kMaxTextTokens.
    TextData(std::vector<std::int64_t> ids, std::int64_t context);

    [[nodiscard]] Batch draw(std::int64_t sequences, Generator& generator) const override;
    /// Evenly spread over the validation part.
    [[nodiscard]] Batch validation(std::int64_t sequences) const override;
    [[nodiscard]] std::string fingerprint() const override;

    [[nodiscard]] std::int64_t training_tokens() const noexcept { return training_; }
    [[nodiscard]] std::int64_t validation_tokens() const noexcept {
        return static_cast<std::int64_t>(ids_.size()) - training_;
    }

private:
    void append_window(std::int64_t begin, Batch& batch) const;

    std::vector<std::int64_t> ids_;
    std::int64_t context_;
    std::int64_t training_;
};

/// Small puzzles on letters that a tiny model learns in a minute, and whose solution shows in its attention. A sequence
/// is n letters, `>` and n letters of answer; only the answer counts.
///
///     copy        abca>abca      letters at random, the same again
///     reverse     abca>acba      from the last to the first
///     sort        abca>aabc      in the order of the alphabet
///     induction   dabc>cdab      different letters, then the same ones from any place on, round and round: what
///                                follows a letter is what followed it before; the first cannot be known
enum class Task : std::uint8_t { copy, reverse, sort, induction };

/// "copy", "reverse", "sort", "induction", in this order.
[[nodiscard]] const std::vector<std::string>& task_names();
/// The alphabet of all tasks: `>` and the letters a to p.
[[nodiscard]] std::string_view task_characters();
/// Letters of a task: 1 to 16, as the alphabet has.
inline constexpr std::int64_t kMaxTaskLetters = 16;

class TaskData final : public Data {
public:
    /// With n = context / 2 letters: context tokens go in, the answer's last letter is only a target. `tokenizer` makes
    /// a token of each of the task_characters() and must outlive the data; draw() throws Error(invalid_argument) if it
    /// joins them. Throws Error(invalid_argument) unless context is even, from 4 to 2 · kMaxTaskLetters.
    TaskData(Task task, std::int64_t context, const text::Tokenizer& tokenizer);

    [[nodiscard]] Batch draw(std::int64_t sequences, Generator& generator) const override;
    [[nodiscard]] Batch validation(std::int64_t sequences) const override;
    [[nodiscard]] std::string fingerprint() const override;

    /// Question and answer of a new puzzle: "abca>", "acba".
    [[nodiscard]] std::pair<std::string, std::string> puzzle(Generator& generator) const;

private:
    Task task_;
    std::int64_t letters_;
    const text::Tokenizer& tokenizer_;
};

}  // namespace models QKV_EXPORT
}  // namespace qkv
