// Text from a language model, token by token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "qkv/export.h"
#include "qkv/models/language_model.hpp"
#include "qkv/nn/gpt.hpp"
#include "qkv/random.hpp"
#include "qkv/runtime.hpp"

namespace qkv {
namespace models QKV_EXPORT {

struct SampleOptions {
    double temperature = 1.0;  ///< logits are divided by it; 0: always the most likely token
    std::int64_t top_k = 0;    ///< only the k most likely tokens; 0: all
    double top_p = 1.0;        ///< of these, the fewest most likely ones that have this share of the probability
};

/// Draws a token. Of equal logits the smaller id counts as the more likely. One 64-bit draw, none at temperature 0.
/// Throws Error(invalid_argument) for options out of range, Error(out_of_range) for a logit that is NaN or +∞,
/// Error(shape_mismatch) if there are no logits.
[[nodiscard]] std::int64_t sample(std::span<const float> logits, const SampleOptions& options, Generator& generator);

/// A text that grows by a token a call, its keys and values kept.
class Generation {
public:
    /// `prompt` is what stands already; empty: the model begins with a token drawn evenly. Of a prompt longer than the
    /// context the last context_length tokens are read. Model and runtime must outlive it. Throws as sample does.
    Generation(const LanguageModel& model, std::span<const std::int64_t> prompt, const SampleOptions& options,
               std::uint64_t seed, const Runtime& runtime = Runtime::serial());

    /// The next token. When the context is full, its first half is forgotten and the rest read again: positions are
    /// learned, so those of the kept tokens change.
    [[nodiscard]] std::int64_t next();

private:
    const LanguageModel* model_;
    SampleOptions options_;
    Generator generator_;
    const Runtime* runtime_;
    nn::GptCache cache_;
    std::vector<std::int64_t> read_;    // what the cache holds
    std::vector<std::int64_t> unread_;  // what stands after it
};

}  // namespace models QKV_EXPORT
}  // namespace qkv
