// The sequences of a call over a cache, and which tokens of its tensors belong to each.
#pragma once

#include "attention/kv_storage.hpp"

namespace qkv::detail {

/// The sequence with that id, or Error(invalid_argument) naming `name`.
[[nodiscard]] const CachedSequence& sequence_at(const KvStorage& storage, SequenceId id, const char* name);
[[nodiscard]] CachedSequence& sequence_at(KvStorage& storage, SequenceId id, const char* name);

/// All ids are sequences of the cache, and their tokens fit the first and third dimension of `view`.
void check_batch(const KvStorage& storage, const CacheBatch& batch, const ConstTensorView& view, const char* name);

/// Tokens [start, start + count) of row `row` of the tensors.
struct BatchTokens {
    std::int64_t row = 0;
    std::int64_t start = 0;
    std::int64_t count = 0;
};
[[nodiscard]] inline BatchTokens batch_tokens(const CacheBatch& batch, const ConstTensorView& view, std::size_t index) {
    if (batch.cumulative_tokens.empty()) {
        return {static_cast<std::int64_t>(index), 0, view.size(2)};
    }
    const std::int64_t start = batch.cumulative_tokens[index];
    return {0, start, batch.cumulative_tokens[index + 1] - start};
}

}  // namespace qkv::detail
