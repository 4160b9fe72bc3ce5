// Stage 3: the future is hidden, and dropout.
#pragma once

#include <cstdint>

#include "qkv/export.h"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

struct CausalAttentionOptions {
    std::int64_t d_in = 0;
    std::int64_t d_out = 0;
    std::int64_t context_length = 0;  ///< the longest sequence
    double dropout = 0.0;             ///< probability of dropping a weight in training, 0 to 1
    bool qkv_bias = false;
};

/// One causal head: query i sees keys 0 to i.
///
///     1 0 0      scores above the diagonal become −∞ before the softmax, so their weights are exactly 0
///     1 1 0      and each row still sums to one. Dropout then zeroes weights and scales the kept ones
///     1 1 1      by 1/(1−p), in training only (Srivastava et al. 2014, in its inverted form).
///
/// Parameters W_query, W_key, W_value (.weight, .bias); buffer `mask` [context_length, context_length].
template <class T>
class BasicCausalAttention : public BasicModule<T> {
public:
    BasicCausalAttention(const CausalAttentionOptions& options, Generator& generator);

    /// x [tokens, d_in] or [batch, tokens, d_in], tokens ≤ context_length → [.., tokens, d_out].
    /// Dropout in training draws from pass.generator: one number per weight, in memory order.
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {}) const;

    /// d_output, shaped as forward's result → the gradient of x, after a forward in training. Adds to the parameters'
    /// gradients; dropout uses forward's mask.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& d_output);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;
    [[nodiscard]] const CausalAttentionOptions& options() const noexcept { return options_; }

protected:
    void visit_masks(const typename BasicModule<T>::MaskVisitor& visit) const override;

private:
    BasicTensor<T> compute(const BasicTensor<T>& x, const Pass<T>& pass, Remembered<T>& memory) const;

    CausalAttentionOptions options_;
    BasicLinear<T> query_, key_, value_;
};

using CausalAttention = BasicCausalAttention<float>;

extern template class BasicCausalAttention<float>;
extern template class BasicCausalAttention<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
