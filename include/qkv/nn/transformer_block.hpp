// Attention and feed-forward, each beside a shortcut.
#pragma once

#include <cstdint>
#include <memory>

#include "qkv/export.h"
#include "qkv/kv_cache.hpp"
#include "qkv/nn/feed_forward.hpp"
#include "qkv/nn/layer_norm.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/nn/multi_head_attention.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

struct TransformerBlockOptions {
    std::int64_t emb_dim = 0;
    std::int64_t context_length = 0;  ///< the longest sequence
    std::int64_t num_heads = 1;
    double dropout = 0.0;  ///< of the weights and of what the shortcuts join, in training, 0 to 1
    bool qkv_bias = false;
    Gelu gelu = Gelu::tanh;
};

/// A pre-norm transformer block (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"):
///
///     x ← x + dropout(att(norm1(x)))
///     x ← x + dropout(ff(norm2(x)))
///
/// Parameters att.* (MultiHeadAttention), ff.* (FeedForward), norm1.scale, norm1.shift, norm2.scale, norm2.shift;
/// buffer att.mask.
template <class T>
class BasicTransformerBlock : public BasicModule<T> {
public:
    /// Throws as MultiHeadAttention does.
    BasicTransformerBlock(const TransformerBlockOptions& options, Generator& generator);

    /// x [tokens, emb_dim] or [batch, tokens, emb_dim], tokens ≤ context_length → the same shape. In training dropout
    /// draws from pass.generator for the weights, then for attention's output, then for the feed-forward's. A trace
    /// gets what MultiHeadAttention records.
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, const Pass<T>& pass = {}) const;

    /// Generation: the next tokens of the sequences of `batch`, as MultiHeadAttention's forward over a cache.
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, KvCache& cache, const CacheBatch& batch,
                                         const Pass<T>& pass = {}) const;

    /// d_output, shaped as forward's result → the gradient of x, after a forward in training. Adds to the parameters'
    /// gradients; dropout uses forward's masks.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& d_output);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;
    void visit_children(const typename BasicModule<T>::ChildVisitor& visit) override;

protected:
    void forget_own() override { kept_.reset(); }

private:
    struct Kept;
    template <class Block>
    static BasicTensor<T> run(Block& block, BasicTensor<T> x, const Pass<T>& pass, Kept& kept);

    double dropout_;
    BasicMultiHeadAttention<T> att_;
    BasicFeedForward<T> ff_;
    BasicLayerNorm<T> norm1_, norm2_;
    std::shared_ptr<const Kept> kept_;
};

using TransformerBlock = BasicTransformerBlock<float>;

extern template class BasicTransformerBlock<float>;
extern template class BasicTransformerBlock<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
