// Keys and values kept from step to step, and attention of new queries over them: what generation needs.
//
// One mechanism, three policies. A sequence is a list of blocks out of the cache's pool; a block holds a number of
// tokens of all key/value heads.
//
//     contiguous   one block per sequence, as long as it may grow
//     windowed     a ring of blocks: the last tokens of each sequence, however long it grows
//     paged        blocks as they are needed, shared between sequences with a common prefix (Kwon et al. 2023)
//
// Letters as in attention.hpp. A token's position counts from the beginning of its sequence, also after a ring has let
// go of what came before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "qkv/attention.hpp"
#include "qkv/export.h"

namespace qkv QKV_EXPORT {

class Rope;
namespace detail {
class KvStorage;
}

/// A sequence of a cache, from add() or fork(). No cache gives the same id twice; ids of other caches are refused.
using SequenceId = std::int64_t;

/// Which sequences a call is about, and the tokens that belong to each.
struct CacheBatch {
    std::span<const SequenceId> sequences;
    /// Empty: row b of the tensors' first dimension belongs to sequences[b], and all have as many tokens. Otherwise the
    /// tensors are packed, their first size is 1, and tokens [cumulative_tokens[s], cumulative_tokens[s+1]) belong to
    /// sequences[s]: from 0, not falling, to the number of all tokens.
    std::span<const std::int64_t> cumulative_tokens = {};
};

/// What a cache holds per token.
struct KvLayout {
    std::int64_t kv_heads = 1;
    std::int64_t head_dim = 0;                   ///< D, at least 1
    std::optional<std::int64_t> value_dim = {};  ///< Dv, at least 1; default head_dim
    DType dtype = DType::f32;                    ///< any float type, whatever that of queries and appended tokens
};

struct ContiguousOptions {
    std::int64_t capacity = 0;   ///< tokens per sequence
    std::int64_t sequences = 1;  ///< the pool has one block for each
};

struct WindowedOptions {
    std::int64_t window = 0;  ///< a token sees itself and the window − 1 before it
    /// Tokens that may be appended before the first of them is attended to: a chunk's first query looks back from
    /// before the chunk. The ring has room for window + max_append tokens, rounded up to blocks, and one block.
    /// A longer append leaves the last ones; attention refuses queries that look back past them.
    std::int64_t max_append = 1;
    std::int64_t sequences = 1;  ///< the pool has one ring's blocks for each
    std::int64_t block_tokens = 64;
};

struct PagedOptions {
    std::int64_t blocks = 0;         ///< of the whole pool
    std::int64_t block_tokens = 64;  ///< a power of two, at least 16 (of windowed caches too)
};

/// Some consecutive tokens of a sequence. What lies at `keys` and `values` follows from `dtype`: for the float types
/// arrays [kv_heads, block_tokens, D] and [kv_heads, block_tokens, Dv], of which the first `tokens` tokens are filled.
struct KvBlock {
    DType dtype = DType::f32;
    const void* keys = nullptr;
    const void* values = nullptr;
    std::int64_t first = 0;   ///< position of the first token
    std::int64_t tokens = 0;  ///< filled
};

/// The pool is allocated at once; adding, forking and removing sequences moves no key. Blocks that sequences share are
/// copied when one of them writes (copy on write). A call that throws leaves the cache as it was.
///
/// Const members and attention() may run on several threads at once; anything else needs the cache to itself.
///
/// Errors name the argument: invalid_argument for an id that is unknown, removed or from another cache, or that is
/// given twice to append; out_of_memory when no block is free; shape_mismatch, out_of_range, unsupported.
class KvCache {
public:
    [[nodiscard]] static KvCache contiguous(const KvLayout& layout, const ContiguousOptions& options);
    [[nodiscard]] static KvCache windowed(const KvLayout& layout, const WindowedOptions& options);
    [[nodiscard]] static KvCache paged(const KvLayout& layout, const PagedOptions& options);

    KvCache(KvCache&&) noexcept;
    KvCache& operator=(KvCache&&) noexcept;
    KvCache(const KvCache&) = delete;
    KvCache& operator=(const KvCache&) = delete;
    ~KvCache();

    /// A new, empty sequence. It takes blocks when tokens are appended.
    [[nodiscard]] SequenceId add();
    /// A new sequence with the first `tokens` tokens of another (all by default), in the same blocks.
    [[nodiscard]] SequenceId fork(SequenceId sequence, std::optional<std::int64_t> tokens = {});
    /// Gives the sequence's blocks back; its id is refused from now on.
    void remove(SequenceId sequence);

    /// Appends tokens: k [B, Hkv, T, D], v [B, Hkv, T, Dv] or packed [1, Hkv, all tokens, ...], of one float type,
    /// rounded to the cache's. Throws out_of_range where a contiguous sequence would outgrow its capacity and
    /// out_of_memory where the pool has too few free blocks, before anything is appended to any sequence.
    void append(const CacheBatch& batch, ConstTensorView k, ConstTensorView v);
    /// The same with each key turned by the rope at its token's position (docs/rope.md), in f32 (f64 in an f64 cache)
    /// and before it is rounded to the cache's type. Throws also where the rope does not fit: another head_dim,
    /// positions past those it has, a dynamic NTK scaling that would turn earlier keys otherwise.
    void append(const CacheBatch& batch, ConstTensorView k, ConstTensorView v, const Rope& rope);
    /// The positions that an append of tokens shaped as `tokens` would give them: [B, T] row-major, for the queries of
    /// the same tokens (RopePositions::each).
    [[nodiscard]] std::vector<std::int64_t> next_positions(const CacheBatch& batch,
                                                           const ConstTensorView& tokens) const;

    /// Forgets all but the first `tokens` tokens. A ring refuses (out_of_range) when it no longer holds what the next
    /// token would see: taking back up to max_append tokens is always possible after an append of as many.
    void truncate(SequenceId sequence, std::int64_t tokens);
    /// Forgets all tokens; the sequence stays.
    void reset(SequenceId sequence);

    /// Tokens appended so far: the position of the next one.
    [[nodiscard]] std::int64_t size(SequenceId sequence) const;
    /// Position of the oldest token still held: 0 but for rings.
    [[nodiscard]] std::int64_t first(SequenceId sequence) const;

    [[nodiscard]] const KvLayout& layout() const noexcept;                ///< value_dim filled in
    [[nodiscard]] std::optional<std::int64_t> window() const noexcept;    ///< of a windowed cache
    [[nodiscard]] std::optional<std::int64_t> capacity() const noexcept;  ///< of a contiguous cache's sequences
    [[nodiscard]] std::int64_t block_tokens() const noexcept;
    [[nodiscard]] std::int64_t sequences() const noexcept;  ///< how many there are now
    [[nodiscard]] std::int64_t blocks() const noexcept;     ///< of the pool
    [[nodiscard]] std::int64_t free_blocks() const noexcept;
    [[nodiscard]] std::int64_t shared_blocks() const noexcept;  ///< held by more than one sequence
    [[nodiscard]] std::size_t bytes() const noexcept;           ///< of the pool

    /// Numbers of the pool's blocks that hold the sequence's tokens, oldest first. Entry 0 holds position
    /// first(sequence) and begins at a multiple of block_tokens.
    [[nodiscard]] std::vector<std::int64_t> block_table(SequenceId sequence) const;
    /// Entry `index` of the block table, as memory. Valid until the cache is next changed.
    [[nodiscard]] KvBlock block(SequenceId sequence, std::int64_t index) const;

    /// What attention reads; its type is the library's own.
    [[nodiscard]] const detail::KvStorage& storage() const noexcept { return *storage_; }

private:
    explicit KvCache(std::unique_ptr<detail::KvStorage> storage);
    void append_turned(const CacheBatch& batch, const ConstTensorView& k, const ConstTensorView& v, const Rope* rope);
    void check_prefix(SequenceId id, std::int64_t tokens) const;
    std::unique_ptr<detail::KvStorage> storage_;
};

/// out = attention(q, the keys and values of each sequence): append first, then attend.
///
///     q [B, Hq, Tq, D], out [B, Hq, Tq, Dv], or packed: [1, Hq, all queries, D] and [1, Hq, all queries, Dv]
///
/// The queries of a sequence are its last Tq tokens, so query i stands at position size − Tq + i, and the call is the
/// one of attention.hpp over all keys with Offsets.query = size − Tq: causal masks and windows mean the same by either
/// alignment, score functions see positions. More queries than tokens are no error: the first ones then stand before
/// position 0, as rows above a bottom-right diagonal do. Nothing is masked that `options.mask` does not mask (one new
/// token needs no mask, several usually want Mask::causal), except that a windowed cache of window W adds
/// Mask::window(W − 1, nullopt, top_left).
///
/// Tk is the longest sequence's size: allowed, bias, weights and scores are [B, Hq, Tq, Tk] with positions as columns,
/// beyond a shorter sequence's size as beyond a packed segment. q is of any float type, `out` of the same or f32;
/// scores and sums are f32 unless q is f64. A sequence may occur more than once. Not available: dropout, Mask::packed,
/// and offsets other than head.
///
/// Keys are cut into spans of 512 positions whose results are merged in order; keys and values are read once for 64
/// rows of the queries and heads that share a key/value head. A row has the same bits whatever the policy, the size of
/// blocks, the batch, the cut of queries into calls and the number of threads; against attention() over tensors it is
/// equal by rounding.
///
/// Throws as attention() does, and out_of_range when a ring no longer holds what a query may see.
void attention(ConstTensorView q, const KvCache& cache, const CacheBatch& batch, TensorView out,
               const AttentionOptions& options = {}, const AttentionExtras& extras = {},
               const Runtime& runtime = Runtime::serial());

/// Bytes of workspace that this very call needs: they grow with the sequences' sizes. Throws what the call would throw.
[[nodiscard]] std::size_t attention_workspace_size(ConstTensorView q, const KvCache& cache, const CacheBatch& batch,
                                                   TensorView out, const AttentionOptions& options = {},
                                                   const AttentionExtras& extras = {},
                                                   const Runtime& runtime = Runtime::serial());

}  // namespace qkv QKV_EXPORT
