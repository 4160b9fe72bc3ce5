// The attention function: softmax(query keyᵀ · scale + mask) value, forward and backward, in memory that grows with
// tokens and not with their square.
//
// Letters: B batch, Hq query heads, Hkv key/value heads, Tq queries, Tk keys, D head_dim, Dv head_dim of the values.
// One score goes through: scale, softcap, bias and ALiBi, score function, mask, sink, softmax, dropout.
//
// Sources: Vaswani et al. 2017 (attention); Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022 and Dao 2023
// (FlashAttention 1 and 2: tiles, backward from lse and delta); Ainslie et al. 2023 (grouped-query heads).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "qkv/export.h"
#include "qkv/mask.hpp"
#include "qkv/runtime.hpp"
#include "qkv/score_function.hpp"
#include "qkv/view.hpp"

namespace qkv QKV_EXPORT {

/// Dropout on the weights: each is kept with probability 1 − p and then divided by 1 − p (Srivastava et al. 2014).
/// The draw is Philox4x32-10 (Salmon et al. 2011) of the seed and the weight's place (sequence id, absolute head, query
/// and key), so backward draws it again, and neither batch, tiling, threads nor machine change it. Places past 2³² are
/// refused when dropout is on.
struct Dropout {
    double p = 0.0;          ///< 0 <= p <= 1
    std::uint64_t seed = 0;  ///< unused with `keep`
    /// Instead of the draw: true = keep, a boolean view that broadcasts to [B, Hq, Tq, Tk].
    std::optional<ConstTensorView> keep = {};
    /// One id per sequence, for draws that follow a sequence from batch to batch; empty: its index in the batch.
    std::span<const std::int64_t> sequence_ids = {};
};

/// Where a call's tokens and heads lie in a larger problem that is spread over several calls. Bands, ALiBi, key_begin,
/// key_end, dropout and score functions count globally; views and block lists are the call's own.
struct Offsets {
    std::int64_t query = 0;
    std::int64_t key = 0;
    std::int64_t head = 0;
    /// Queries and keys of the whole sequence, for Align::bottom_right; 0: offset plus the call's own.
    std::int64_t queries = 0;
    std::int64_t keys = 0;
};

/// How scores become weights.
struct AttentionOptions {
    Mask mask = {};
    std::optional<double> scale = {};  ///< finite; default 1/√D
    double softcap = 0.0;              ///< c > 0: score ← c·tanh(score / c) (Gemma 2, 2024); 0: off
    /// Attention sinks: one learned score per head that takes part in the softmax and has no value (Xiao et al. 2023).
    /// f32 (f64 with f64 queries), [1, Hq, 1, 1].
    std::optional<ConstTensorView> sinks = {};
    Dropout dropout = {};
    ScoreFunction score_function = {};
    Offsets offsets = {};
};

/// The four points at which ONNX's Attention can show its scores (qk_matmul_output_mode 0 to 3).
enum class ScorePoint : std::uint8_t {
    scaled,   ///< query · key · scale, masked keys too
    capped,   ///< and after softcap, masked keys too
    masked,   ///< and after bias, ALiBi, score function and mask: −∞ where masked
    weights,  ///< and after softmax, before dropout
};

/// What a call can give besides the context. Asking changes no bit of the context.
struct AttentionExtras {
    /// log Σ exp(score) per row: f32 (f64 with f64 queries), [B, Hq, Tq, 1]. −∞ for an empty row.
    std::optional<TensorView> lse = {};
    /// Whether lse counts the sink. With it an empty row's lse is the sink.
    bool lse_counts_sinks = true;
    /// Weights per head, before dropout, 0 where masked: [B, Hq, Tq, Tk], any float type.
    std::optional<TensorView> weights = {};
    /// Scores at `scores_at`, as `weights`. Outside a packed sequence's own keys: 0, or −∞ at ScorePoint::masked.
    std::optional<TensorView> scores = {};
    ScorePoint scores_at = ScorePoint::masked;
    /// Scratch memory of at least attention_workspace_size(...) bytes: with it the call allocates nothing. Empty: the
    /// call allocates its own.
    std::span<std::byte> workspace = {};
};

/// out = attention(q, k, v).
///
///     q [B, Hq, Tq, D]   k [B, Hkv, Tk, D]   v [B, Hkv, Tk, Dv]   out [B, Hq, Tq, Dv]
///
/// q, k and v share a type: f32, bf16, f16 or f64. Scores and sums are f32 (f64 for f64). `out` has that type or, for
/// partial results, f32. The last stride is 1, the others are free; outputs overlap neither inputs nor each other.
/// Query head h reads key/value head h / (Hq / Hkv); Hkv divides Hq. Any size may be 0: no keys give 0, and D = 0
/// weighs all keys alike.
///
/// An empty row (nothing may be attended) gives 0 and lse −∞. Masked keys and values are never part of a product: a NaN
/// there does not show. The same row gives the same bits for any number of threads, any batch around its sequence, and
/// any run, whatever the caller's rounding and flush-to-zero modes.
///
/// Throws Error(shape_mismatch | invalid_argument | unsupported | out_of_range | out_of_memory) naming the argument,
/// before anything is written.
void attention(ConstTensorView q, ConstTensorView k, ConstTensorView v, TensorView out,
               const AttentionOptions& options = {}, const AttentionExtras& extras = {},
               const Runtime& runtime = Runtime::serial());

/// Bytes of workspace that this very call needs. Throws what the call would throw.
[[nodiscard]] std::size_t attention_workspace_size(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                                   TensorView out, const AttentionOptions& options = {},
                                                   const AttentionExtras& extras = {},
                                                   const Runtime& runtime = Runtime::serial());

/// What backward needs from forward. All of the shapes that forward had.
struct AttentionSaved {
    ConstTensorView lse = {};                 ///< from forward, or merged from several partial calls: [B, Hq, Tq, 1]
    bool lse_counts_sinks = true;             ///< as it was in forward's extras
    std::optional<ConstTensorView> out = {};  ///< forward's context [B, Hq, Tq, Dv]; needed when delta is not given
    /// Σ over Dv of d_out · out, per row, f32 (f64 with f64 queries), [B, Hq, Tq, 1].
    std::optional<ConstTensorView> delta = {};
};

/// What backward writes; leave out what is not wanted. Types: the inputs' or f32 (partial results).
struct AttentionGradients {
    std::optional<TensorView> dq = {};      ///< as q
    std::optional<TensorView> dk = {};      ///< as k: summed over the query heads that share a key head
    std::optional<TensorView> dv = {};      ///< as v
    std::optional<TensorView> dbias = {};   ///< as the bias: summed over the dimensions along which it is repeated
    std::optional<TensorView> dsinks = {};  ///< as the sinks; f32 (f64 with f64 queries)
    std::optional<TensorView> dalibi = {};  ///< as the slopes; f32 (f64 with f64 queries)
    std::span<std::byte> workspace = {};    ///< as in AttentionExtras; attention_backward_workspace_size(...) bytes
};

/// Gradients of sum(d_out · attention(q, k, v)) with the same options (dropout is drawn again).
///
/// Overwrites what `gradients` names (calls over parts of a sequence give partial sums that add up when lse and delta
/// are those of the whole). Empty rows give 0 and add nothing to dk and dv. Deterministic as forward is: every element
/// is summed in one order. Memory grows with tokens. A score function needs its `gradient`.
/// Throws as attention() does.
void attention_backward(ConstTensorView q, ConstTensorView k, ConstTensorView v, ConstTensorView d_out,
                        const AttentionSaved& saved, const AttentionGradients& gradients,
                        const AttentionOptions& options = {}, const Runtime& runtime = Runtime::serial());

/// Bytes of workspace that this very call needs. Throws what the call would throw.
[[nodiscard]] std::size_t attention_backward_workspace_size(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                                            ConstTensorView d_out, const AttentionSaved& saved,
                                                            const AttentionGradients& gradients,
                                                            const AttentionOptions& options = {},
                                                            const Runtime& runtime = Runtime::serial());

/// A partial result: the context over some of the keys, and its lse without sinks. f32 or f64, shapes
/// [B, Hq, Tq, Dv] and [B, Hq, Tq, 1].
struct AttentionState {
    TensorView out;
    TensorView lse;
};

/// state ← state and part together, as if one call had seen the keys of both (Milakov & Gimelshein 2018, section 3.1):
///
///     m = max(a, b)   lse = m + log(exp(a − m) + exp(b − m))   out = out_a exp(a − lse) + out_b exp(b − lse)
///
/// A part with lse −∞ leaves `state` as it is, whatever its `out` holds. Merging in a fixed order gives fixed bits.
/// Throws Error(shape_mismatch | unsupported) naming the argument.
void attention_merge(const AttentionState& state, ConstTensorView part_out, ConstTensorView part_lse);

/// The sink, once, after the last merge: lse ← log(exp(lse) + exp(sink)), out scaled to fit. sinks [1, Hq, 1, 1].
void attention_merge_sinks(const AttentionState& state, ConstTensorView sinks);

}  // namespace qkv QKV_EXPORT
