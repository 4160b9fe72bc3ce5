// Who may attend to whom: named values that combine with `&`. `true`, and 1 in the drawings, means "may attend".
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "qkv/export.h"
#include "qkv/view.hpp"

namespace qkv QKV_EXPORT {

/// Which corner of the scores a diagonal runs through when there are more keys than queries, or fewer.
///
///     top_left: query i stands at key i          bottom_right: the last query stands at the last key
///       2 queries, 4 keys   4 queries, 2 keys      2 queries, 4 keys   4 queries, 2 keys
///          1 0 0 0             1 0                    1 1 1 0             0 0
///          1 1 0 0             1 1                    1 1 1 1             0 0
///                              1 1                                        1 0
///                              1 1                                        1 1
///
/// "The last key" is the sequence's own: its key_end, or the end of its segment in a packed batch. PyTorch's is_causal
/// is top_left; flash-attention since 2.1 and decoding with a cache are bottom_right.
enum class Align : std::uint8_t { top_left, bottom_right };

/// The keys that each block of queries may attend to, as ascending lists (block-sparse attention). Query block `n`
/// holds queries [n·query_block, (n+1)·query_block) of a sequence, key blocks likewise; the last ones may be short.
///
///     query_block 2, key_block 2, lists {0}, {0, 2}:     1 1 0 0 0 0
///                                                        1 1 0 0 0 0
///                                                        1 1 0 0 1 1
///                                                        1 1 0 0 1 1
///
/// List ((s·heads + h)·query_blocks + n) is key_blocks[starts[list] .. starts[list + 1]); `sequences` and `heads` are 1
/// where all share the lists, and query_blocks = ceil(longest sequence's queries / query_block).
struct BlockList {
    std::int64_t query_block = 0;
    std::int64_t key_block = 0;
    std::int64_t sequences = 1;
    std::int64_t heads = 1;
    std::span<const std::int64_t> starts;
    std::span<const std::int64_t> key_blocks;
};

/// A mask, or several combined: `Mask::causal(Align::top_left) & Mask::key_end(lengths)`. A default Mask allows all.
/// It refers to the caller's memory, which must outlive the call. Shapes are checked by the function that uses it.
///
/// "Sequence" means one row of the batch, or one segment of a packed batch. All indices count from the sequence's first
/// query and first key (plus the global Offsets of a call, where given).
class Mask {
public:
    Mask() = default;

    ///     causal(top_left), 4 × 4        causal(1): key <= query + 1
    ///         1 0 0 0                        1 1 0 0
    ///         1 1 0 0                        1 1 1 0
    ///         1 1 1 0                        1 1 1 1
    ///         1 1 1 1                        1 1 1 1
    [[nodiscard]] static Mask causal(Align align);
    [[nodiscard]] static Mask causal(std::int64_t offset);

    /// Keys from `left` before the diagonal to `right` after it; nullopt does not limit that side. Both >= 0.
    ///
    ///     window(1, 1, top_left)         window(2, 0, top_left): causal over the last 3 tokens
    ///         1 1 0 0 0                      1 0 0 0 0
    ///         1 1 1 0 0                      1 1 0 0 0
    ///         0 1 1 1 0                      1 1 1 0 0
    ///         0 0 1 1 1                      0 1 1 1 0
    ///         0 0 0 1 1                      0 0 1 1 1
    [[nodiscard]] static Mask window(std::optional<std::int64_t> left, std::optional<std::int64_t> right, Align align);

    /// A boolean view, true = may attend, that broadcasts to [B, Hq, Tq, Tk] (each size that or 1), any strides.
    /// In a packed batch it is indexed by packed token, as queries and keys are.
    [[nodiscard]] static Mask allowed(ConstTensorView allowed);

    /// A view of f32, bf16 or f16 (f64 with f64 queries) that broadcasts to [B, Hq, Tq, Tk], added to the scores after
    /// softcap. −∞ in it masks.
    [[nodiscard]] static Mask bias(ConstTensorView bias);

    /// Adds −slope·|query − key| to the scores, the distance taken along `align`'s diagonal (Press et al. 2022).
    /// `slopes`: f32 (f64 with f64 queries), [1 or B, Hq, 1, 1].
    [[nodiscard]] static Mask alibi(ConstTensorView slopes, Align align = Align::bottom_right);

    ///     key_begin {1} (left padding)    key_end {3} (right padding), one number per sequence
    ///         0 1 1 1                         1 1 1 0
    ///         0 1 1 1                         1 1 1 0
    [[nodiscard]] static Mask key_begin(std::span<const std::int64_t> begin);
    [[nodiscard]] static Mask key_end(std::span<const std::int64_t> end);

    /// A packed batch: B is 1, and sequence s owns queries [queries[s], queries[s+1]) and keys [keys[s], keys[s+1]).
    /// Both start with 0, do not fall, and end with Tq and Tk.
    ///
    ///     packed({0, 2, 3}, {0, 1, 4})
    ///         1 0 0 0
    ///         1 0 0 0
    ///         0 1 1 1
    [[nodiscard]] static Mask packed(std::span<const std::int64_t> cumulative_queries,
                                     std::span<const std::int64_t> cumulative_keys);

    [[nodiscard]] static Mask blocks(const BlockList& blocks);

    /// low <= key − query <= high, along one alignment's diagonal.
    struct Band {
        std::int64_t low = -unbounded;
        std::int64_t high = unbounded;
    };
    /// Farther than any token is from another; windows and offsets must stay below it.
    static constexpr std::int64_t unbounded = std::numeric_limits<std::int64_t>::max() / 8;

    Band top_left;
    Band bottom_right;
    std::optional<ConstTensorView> allowed_view;
    std::optional<ConstTensorView> bias_view;
    std::optional<ConstTensorView> alibi_slopes;
    Align alibi_align = Align::bottom_right;
    std::optional<std::span<const std::int64_t>> key_begins;
    std::optional<std::span<const std::int64_t>> key_ends;
    std::optional<std::span<const std::int64_t>> packed_queries;
    std::optional<std::span<const std::int64_t>> packed_keys;
    std::optional<BlockList> block_list;
};

/// What both allow. Diagonals and windows intersect; of every other kind one can be held, a second throws
/// Error(invalid_argument).
[[nodiscard]] Mask operator&(const Mask& a, const Mask& b);

}  // namespace qkv QKV_EXPORT
