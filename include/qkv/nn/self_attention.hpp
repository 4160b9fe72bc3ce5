// Stage 2: trainable query, key and value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "qkv/export.h"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// Where the three matrices come from.
enum class Init : std::uint8_t {
    uniform,  ///< raw matrices [d_in, d_out] drawn with rand: x · W_query
    linear,   ///< torch.nn.Linear layers: x · W_query.weightᵀ (+ W_query.bias)
};

struct SelfAttentionOptions {
    std::int64_t d_in = 0;
    std::int64_t d_out = 0;
    Init init = Init::linear;
    bool qkv_bias = false;  ///< linear layers only
};

/// Scaled dot-product self-attention (Vaswani et al. 2017, "Attention Is All You Need", equation 1):
///
///     context = softmax(Q Kᵀ / √d_out) V        Q = x W_query   K = x W_key   V = x W_value
///
/// Parameters: `W_query`, `W_key`, `W_value` for raw matrices, `W_query.weight` (and `.bias`), … for linear layers.
template <class T>
class BasicSelfAttention : public BasicModule<T> {
public:
    /// Draws the parameters in the order query, key, value.
    BasicSelfAttention(const SelfAttentionOptions& options, Generator& generator);

    /// x [tokens, d_in] or [batch, tokens, d_in] → [.., tokens, d_out].
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {}) const;

    /// d_output, shaped as forward's result → the gradient of x, after a forward in training. Adds to the parameters'
    /// gradients; dropout uses forward's mask.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& d_output);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;

private:
    BasicTensor<T> compute(const BasicTensor<T>& x, const Pass<T>& pass, Remembered<T>& memory) const;

    struct RawMatrices {
        Parameter<T> query, key, value;  // [d_in, d_out] each
    };
    struct Layers {
        BasicLinear<T> query, key, value;
    };
    SelfAttentionOptions options_;
    std::optional<RawMatrices> raw_;
    std::optional<Layers> linear_;
};

using SelfAttention = BasicSelfAttention<float>;

extern template class BasicSelfAttention<float>;
extern template class BasicSelfAttention<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
