// Stage 1: attention without weights.
#pragma once

#include <cstdint>

#include "qkv/export.h"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// How a row of scores becomes a row of weights that sums to one.
enum class Normalise : std::uint8_t {
    sum,            ///< score / Σ scores: breaks on negative scores
    naive_softmax,  ///< exp(score) / Σ exp(score): overflows from scores of 89 on in fp32
    softmax,        ///< exp(score − max) / Σ exp(score − max): the same value, always finite
};

/// One row, in place of a whole matrix: scores [n] → weights [n].
template <class T>
[[nodiscard]] QKV_EXPORT BasicTensor<T> normalised(const BasicTensor<T>& scores, Normalise how);

/// Simplified self-attention: every token vector is its own query, key and value.
///
///     scores = x xᵀ        weights = normalise(scores)        context = weights x
///
/// It has no parameters; it shows what the trainable stages refine.
template <class T>
class BasicSimpleSelfAttention : public BasicModule<T> {
public:
    explicit BasicSimpleSelfAttention(Normalise how = Normalise::softmax) : how_(how) {}

    /// All queries as matrix products. x [tokens, dim] or [batch, tokens, dim] → the same shape.
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {}) const;
    /// The same by three nested loops, as one would write it by hand.
    [[nodiscard]] BasicTensor<T> forward_loops(const BasicTensor<T>& x) const;
    /// The context vector of one query, counted from 0. x [tokens, dim] → [dim].
    [[nodiscard]] BasicTensor<T> forward_query(const BasicTensor<T>& x, std::int64_t query) const;

    /// d_context, shaped as x → the gradient of x, by the plain passes of forward backwards. x serves as query, key and
    /// value at once, so three gradients add up.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& x, const BasicTensor<T>& d_context) const;

private:
    Normalise how_;
};

using SimpleSelfAttention = BasicSimpleSelfAttention<float>;

extern template class BasicSimpleSelfAttention<float>;
extern template class BasicSimpleSelfAttention<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
