// Scaled dot-product attention one visible step at a time: what the stages share, and what `qkv explain` shows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "qkv/nn/module.hpp"
#include "qkv/tensor.hpp"

namespace qkv::nn {

/// What dropout keeps, a byte for each weight or element: 1 or 0.
using KeepBytes = std::vector<std::uint8_t, qkv::detail::ElementAllocator<std::uint8_t>>;

/// Every matrix on the way from queries and keys to the weights. N counts batch × heads.
template <class T>
struct AttentionSteps {
    BasicTensor<T> scores;                       // [N, Tq, Tk]  Q Kᵀ
    BasicTensor<T> scaled;                       // [N, Tq, Tk]  scores / √head_dim
    std::optional<BasicTensor<T>> masked;        // [N, Tq, Tk]  −∞ where nothing may be attended to; absent: no mask
    BasicTensor<T> weights;                      // [N, Tq, Tk]  softmax of each row
    std::optional<BasicTensor<T>> dropout_mask;  // [N, Tq, Tk]  0 or 1/(1−p), absent: no dropout
    std::optional<BasicTensor<T>> dropped_weights;
};

/// Which keys a query may attend to.
struct StepMask {
    bool causal = false;               ///< query i sees keys 0 to i
    std::vector<bool> keys = {};       ///< empty, or [batch, Tk]: true = may be attended to
    std::int64_t heads_per_batch = 1;  ///< how many consecutive n share a row of `keys`

    [[nodiscard]] bool any() const noexcept { return causal || !keys.empty(); }
    [[nodiscard]] bool allows(std::int64_t n, std::int64_t query, std::int64_t key, std::int64_t key_count) const {
        if (causal && key > query) {
            return false;
        }
        return keys.empty() || keys[static_cast<std::size_t>(n / heads_per_batch * key_count + key)];
    }
};

/// Dropout as a stage holds it: idle unless it trains.
struct StepDropout {
    double probability = 0.0;
    bool training = false;
};

/// queries [N, Tq, D], keys [N, Tk, D]; `keep`, one byte a weight, is dropout's mask, or empty. The context itself
/// comes from qkv::attention: these passes only show how.
template <class T>
[[nodiscard]] AttentionSteps<T> attention_steps(const BasicTensor<T>& queries, const BasicTensor<T>& keys,
                                                const StepMask& mask, const KeepBytes& keep, double dropout);

/// Softmax of one row of n scores, in place of none: the row's maximum is subtracted first, so exp never overflows.
/// A row of −∞ alone becomes zeros.
template <class T>
void softmax_row(const T* scores, T* weights, std::int64_t n);

/// Throws Error(invalid_argument) unless 0 ≤ p ≤ 1.
void check_dropout(double p);
/// Throws Error(invalid_argument), with neighbours that work, unless num_heads divides d_out.
void check_heads(std::int64_t d_out, std::int64_t num_heads);
/// Throws Error(invalid_argument) unless num_kv_heads divides num_heads.
void check_kv_heads(std::int64_t num_heads, std::int64_t num_kv_heads);
/// Throws Error(out_of_range) when a sequence is longer than the mask that was built for it.
void check_context_length(std::int64_t tokens, std::int64_t context_length);

/// [tokens, width] or [batch, tokens, width] as [batch, tokens, width]; throws Error(shape_mismatch) naming `what`
/// unless the rank is 2 or 3 and the width is `width` (−1: any).
template <class T>
[[nodiscard]] BasicTensor<T> with_batch(BasicTensor<T> x, std::int64_t width, const char* what);
/// Drops a leading axis again if the input had none.
template <class T>
[[nodiscard]] BasicTensor<T> without_batch(BasicTensor<T> x, bool input_had_batch);

/// [batch, tokens, heads · head_dim] → [batch · heads, tokens, head_dim]: view, then transpose.
template <class T>
[[nodiscard]] BasicTensor<T> split_heads(const BasicTensor<T>& x, std::int64_t heads);
/// A state_dict of torch.nn.MultiheadAttention in the names of the stages (W_query.weight, …); others pass unchanged.
template <class T>
[[nodiscard]] StateDict<T> from_torch_multihead(StateDict<T> state);

/// Records the steps by name, each [N, rows, columns] shown as [leading..., rows, columns].
template <class T>
void record_steps(const AttentionSteps<T>& steps, const Shape& leading, BasicTrace<T>& trace);

}  // namespace qkv::nn
