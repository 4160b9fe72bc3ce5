// What the trainable stages share: project, attend, remember for backward, and the way back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "nn/attention_steps.hpp"
#include "nn/remember.hpp"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/rope.hpp"
#include "qkv/runtime.hpp"
#include "qkv/view.hpp"

namespace qkv::nn {

/// How a stage attends.
struct AttendOptions {
    std::int64_t heads = 1;
    std::int64_t kv_heads = 1;
    bool causal = false;
    std::vector<bool> source_mask = {};  ///< empty, or [batch, source tokens]: true = may be attended to
    StepDropout dropout = {};
    std::optional<Rope> rope = {};  ///< turns queries and keys by their positions
    std::int64_t first_query = 0;   ///< position of the first query; keys begin at 0
    bool keys_turned = false;       ///< the rope has turned the keys already
    /// Axes shown before [rows, columns] in a trace: none, the batch, the heads, or both.
    Shape leading = {};
};

/// [batch, tokens, heads · head_dim], seen in place as [batch, heads, tokens, head_dim].
template <class Tensor>
[[nodiscard]] auto heads_of(Tensor& x, std::int64_t heads) {
    return tokens_first(x.data(), x.size(0), x.size(1), heads, x.size(2) / heads);
}

/// Options whose num_kv_heads is a number. Throws Error(invalid_argument) unless num_heads divides d_out and
/// num_kv_heads divides num_heads.
template <class Options>
[[nodiscard]] Options with_kv_heads(Options options) {
    check_heads(options.d_out, options.num_heads);
    options.num_kv_heads = options.num_kv_heads == 0 ? options.num_heads : options.num_kv_heads;
    check_kv_heads(options.num_heads, options.num_kv_heads);
    return options;
}

/// What turns queries and keys, if the options want it. Throws as Rope does.
template <class Options>
[[nodiscard]] std::optional<Rope> rope_of(const Options& options) {
    return options.rope ? std::optional<Rope>(std::in_place, *options.rope, options.d_out / options.num_heads)
                        : std::nullopt;
}

/// Width of all keys, or values, of a token.
template <class Options>
[[nodiscard]] std::int64_t kv_width(const Options& options) {
    return options.d_out / options.num_heads * options.num_kv_heads;
}

/// Forward's tensors that backward needs.
template <class T>
struct Remembered {
    BasicTensor<T> query_input;                  // [batch, tokens, width]
    std::optional<BasicTensor<T>> source_input;  // [batch, source tokens, width]; absent where it is the queries'
    BasicTensor<T> queries;                      // [batch, tokens, heads · head_dim], turned if a rope is there
    BasicTensor<T> keys;                         // [batch, source tokens, kv_heads · head_dim], likewise
    BasicTensor<T> values;                       // as keys
    BasicTensor<T> context;                      // as queries
    BasicTensor<T> lse;                          // [batch, heads, tokens, 1]
    KeepBytes keep;                              // dropout: [batch, heads, tokens, source tokens], or empty
    std::vector<std::uint8_t> allowed;           // source mask: [batch, source tokens], or empty
    AttendOptions options;
    const Runtime* runtime = &Runtime::serial();
    bool batched = false;  // whether the input, and so the output, had a batch axis

    [[nodiscard]] const BasicTensor<T>& source() const { return source_input ? *source_input : query_input; }
};

/// Gradients of the projected sequences, shaped as Remembered's.
template <class T>
struct ProjectionGradients {
    BasicTensor<T> queries, keys, values;
};

/// context [batch, tokens, heads · head_dim] = softmax(Q Kᵀ / √head_dim) V per head, by qkv::attention. `memory` holds
/// the inputs and the projected queries, keys and values already; the rest is filled in. A trace gets queries, keys,
/// values, rotated_queries and rotated_keys where a rope turns them, and every step, as the plain passes of
/// attention_steps see them.
template <class T>
void attend(Remembered<T>& memory, AttendOptions options, const Pass<T>& pass);

/// Into a trace, if there is one: queries, keys and values as projected; rotated_queries and rotated_keys.
template <class T>
void record_projected(const Remembered<T>& memory, BasicTrace<T>* trace);
template <class T>
void record_turned(const Remembered<T>& memory, BasicTrace<T>* trace);

template <class T>
[[nodiscard]] ProjectionGradients<T> attend_backward(const Remembered<T>& memory, const BasicTensor<T>& d_context);

/// Throws as check_gradient, unless the gradient that reaches a stage has the shape of an output of this width.
template <class T>
void check_gradient(const BasicTensor<T>& d_output, const Remembered<T>& memory, std::int64_t width);
/// The same, and returns the gradient with a batch axis: [batch, tokens, width].
template <class T>
[[nodiscard]] BasicTensor<T> checked_gradient(const BasicTensor<T>& d_output, const Remembered<T>& memory,
                                              std::int64_t width);

}  // namespace qkv::nn
