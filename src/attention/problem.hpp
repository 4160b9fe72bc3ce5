// One validated call: sizes and settings that every later step can rely on. Made by validate, changed by nobody.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/kernels.hpp"
#include "qkv/attention.hpp"

namespace qkv::detail {

using kernels::kKeyTile;
using kernels::kQueryTile;

[[nodiscard]] constexpr std::int64_t tiles_of(std::int64_t tokens, std::int64_t tile) noexcept {
    return (tokens + tile - 1) / tile;
}

/// Memory of a cache: block n at data + n · bytes, its keys [kv_heads][tokens][D], then at `values_at` its values
/// [kv_heads][tokens][Dv].
struct KeyValueBlocks {
    const std::byte* data = nullptr;  // null: keys and values are tensors
    DType dtype = DType::f32;
    std::int64_t tokens = 0;
    std::int64_t bytes = 0;
    std::int64_t values_at = 0;
};

class KvStorage;

struct Problem {
    ConstTensorView q;  // [B, Hq, Tq, D]
    ConstTensorView k;  // [B, Hkv, Tk, D]
    ConstTensorView v;  // [B, Hkv, Tk, Dv]
    // Of a cache instead: k and v are empty.
    const KvStorage* cache = nullptr;
    std::span<const std::int64_t> cache_sequences;
    KeyValueBlocks blocks;

    std::int64_t batch = 0;
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t queries = 0;
    std::int64_t keys = 0;  // the longest sequence's in a cache
    std::int64_t head_dim = 0;
    std::int64_t value_dim = 0;
    std::int64_t group = 1;      // query heads per key/value head
    std::int64_t sequences = 0;  // batch, or segments of a packed batch
    DType compute = DType::f32;  // of scores and sums: f64 for f64 inputs

    double scale = 1.0;
    double softcap = 0.0;
    // Views have a stride of 0 along the dimensions they are repeated over, so all are indexed [b, h, i, j].
    Mask mask;
    Shape4 bias_shape{};  // as the caller gave them: the shapes of their gradients
    Shape4 alibi_shape{};
    std::optional<ConstTensorView> sinks;
    std::optional<ConstTensorView> keep;
    bool dropout = false;
    double keep_scale = 1.0;       // 1 / (1 − p), or 0 where nothing is kept
    std::uint64_t drop_below = 0;  // of 2³²: a draw below it drops
    std::uint64_t dropout_seed = 0;
    std::span<const std::int64_t> sequence_ids;
    ScoreFunction score_function;
    Offsets offsets;

    [[nodiscard]] bool packed() const noexcept { return mask.packed_queries.has_value(); }
    /// Whether single scores can be masked by something that no range of keys describes.
    [[nodiscard]] bool masks_single_scores() const noexcept {
        return mask.allowed_view || mask.bias_view || score_function.apply != nullptr;
    }
};

/// One row of the batch or one packed segment. Rows and columns count from its first query and key.
struct Sequence {
    std::int64_t index = 0;
    std::int64_t batch = 0;  // where its tensors are: [batch, head, query_start + row, ...]
    std::int64_t query_start = 0;
    std::int64_t key_start = 0;
    std::span<const std::int64_t> blocks;  // of a cache: token t lies in block blocks[t / tokens mod their number]
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    std::int64_t query_offset = 0;  // the global place of row 0
    // The closed-form part of the mask: columns [first_key, end_key), and low <= column − row <= high.
    std::int64_t first_key = 0;
    std::int64_t end_key = 0;
    std::int64_t low = 0;
    std::int64_t high = 0;
    // ALiBi's diagonal: the distance of (row, column) is |row + alibi_shift − column|.
    std::int64_t alibi_shift = 0;
};

/// Queries and keys of one sequence.
[[nodiscard]] std::int64_t sequence_queries(const Problem& problem, std::int64_t index);
[[nodiscard]] std::int64_t sequence_keys(const Problem& problem, std::int64_t index);

[[nodiscard]] Sequence sequence_of(const Problem& problem, std::int64_t index);

/// A tile of scores: rows and columns within `sequence`.
struct Tile {
    const Sequence* sequence = nullptr;
    std::int64_t head = 0;
    std::int64_t row = 0;
    std::int64_t rows = 0;
    std::int64_t column = 0;
    std::int64_t columns = 0;
    bool full = false;  // no entry is masked
};

}  // namespace qkv::detail
