// Stage 4: many heads, first as a list of single heads, then as one projection that is split.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "qkv/export.h"
#include "qkv/kv_cache.hpp"
#include "qkv/nn/causal_attention.hpp"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/rope.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

struct MultiHeadAttentionOptions {
    std::int64_t d_in = 0;
    std::int64_t d_out = 0;           ///< wrapper: of each head; MultiHeadAttention: of all heads together
    std::int64_t context_length = 0;  ///< the longest sequence
    double dropout = 0.0;             ///< probability of dropping a weight in training, 0 to 1
    std::int64_t num_heads = 1;
    bool qkv_bias = false;
    /// MultiHeadAttention: key and value heads, each shared by num_heads / num_kv_heads query heads (grouped-query
    /// attention, Ainslie et al. 2023); 0: as many as num_heads. W_key and W_value are [num_kv_heads · head_dim, d_in].
    std::int64_t num_kv_heads = 0;
    /// MultiHeadAttention: queries and keys of each head are turned by their positions after the projection
    /// (docs/rope.md); rotary_dim is at most head_dim.
    std::optional<RopeOptions> rope = {};
};

/// Several causal heads side by side, their contexts concatenated: [.., tokens, num_heads · d_out].
/// Parameters of head N are named heads.N.W_query.weight and so on.
template <class T>
class BasicMultiHeadAttentionWrapper : public BasicModule<T> {
public:
    /// Draws all parameters of the first head, then of the second, ….
    BasicMultiHeadAttentionWrapper(const MultiHeadAttentionOptions& options, Generator& generator);

    /// x [tokens, d_in] or [batch, tokens, d_in] → [.., tokens, num_heads · d_out].
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {}) const;

    /// d_output, shaped as forward's result → the gradient of x, after a forward in training. Adds to the parameters'
    /// gradients; dropout uses forward's mask.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& d_output);

    void visit_children(const typename BasicModule<T>::ChildVisitor& visit) override;

protected:
    void forget_own() override { output_shape_.reset(); }

private:
    std::vector<BasicCausalAttention<T>> heads_;
    std::optional<Shape> output_shape_;  // of the forward that backward goes back over
};

/// Causal multi-head attention (Vaswani et al. 2017, section 3.2.2): one projection to d_out, split into num_heads of
/// head_dim = d_out / num_heads, each head attending on its own, their contexts joined and projected once more.
///
///     x W_query  [tokens, d_out] → view [tokens, heads, head_dim] → transpose [heads, tokens, head_dim]
///
/// Parameters W_query, W_key, W_value (.weight, .bias), out_proj.weight, out_proj.bias; buffer `mask`.
/// A torch.nn.MultiheadAttention state_dict loads too (in_proj_weight, or q/k/v_proj_weight).
template <class T>
class BasicMultiHeadAttention : public BasicModule<T> {
public:
    /// Throws Error(invalid_argument) unless num_heads divides d_out, and for rope options that do not fit head_dim.
    BasicMultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator);

    /// x [tokens, d_in] or [batch, tokens, d_in], tokens ≤ context_length → [.., tokens, d_out].
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, const Pass<T>& pass = {}) const;

    /// Generation: x holds the next tokens of the sequences of `batch`, [batch, new tokens, d_in], or packed or of one
    /// sequence [new tokens, d_in]. Their keys (turned by the rope) and values are appended to the cache, and each
    /// token attends to itself and all that its sequence holds before it → [.., new tokens, d_out].
    ///
    /// A sequence of which the cache holds all tokens gets the output of forward over the whole of it: the same bits
    /// however it is cut into calls and batches, equal to forward by rounding. The cache has this module's key/value
    /// heads of head_dim; a windowed one hides what has left its window. A trace gets the new tokens' tensors, and
    /// `masked` and `weights` with all positions as columns (no scores, scaled).
    ///
    /// Remembers nothing for backward. Throws, before anything is appended, Error(out_of_range) past context_length,
    /// Error(shape_mismatch) for other heads, Error(unsupported) with active dropout, and what append throws; only a
    /// ring that is too small for so many new tokens refuses afterwards.
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, KvCache& cache, const CacheBatch& batch,
                                         const Pass<T>& pass = {}) const;

    /// d_output, shaped as forward's result → the gradient of x, after a forward in training. Adds to the parameters'
    /// gradients; dropout uses forward's mask.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& d_output);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;

protected:
    void visit_masks(const typename BasicModule<T>::MaskVisitor& visit) const override;
    [[nodiscard]] StateDict<T> translate(StateDict<T> state) const override;

private:
    void read_input(BasicTensor<T> x, const Pass<T>& pass, Remembered<T>& memory) const;
    void project_input(Remembered<T>& memory, BasicTrace<T>* trace) const;
    BasicTensor<T> compute(BasicTensor<T> x, const Pass<T>& pass, Remembered<T>& memory) const;

    MultiHeadAttentionOptions options_;
    BasicLinear<T> query_, key_, value_, out_proj_;
    std::optional<Rope> rope_;
};

using MultiHeadAttentionWrapper = BasicMultiHeadAttentionWrapper<float>;
using MultiHeadAttention = BasicMultiHeadAttention<float>;

extern template class BasicMultiHeadAttentionWrapper<float>;
extern template class BasicMultiHeadAttentionWrapper<double>;
extern template class BasicMultiHeadAttention<float>;
extern template class BasicMultiHeadAttention<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
