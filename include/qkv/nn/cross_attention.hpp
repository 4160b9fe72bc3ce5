// Stage 5: queries from one sequence, keys and values from another.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "qkv/export.h"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/rope.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

struct CrossAttentionOptions {
    std::int64_t d_query = 0;   ///< width of the sequence that asks
    std::int64_t d_source = 0;  ///< width of the sequence that is read
    std::int64_t d_out = 0;
    double dropout = 0.0;  ///< probability of dropping a weight in training, 0 to 1
    std::int64_t num_heads = 1;
    bool qkv_bias = false;
    std::int64_t num_kv_heads = 0;  ///< grouped-query heads, as in MultiHeadAttentionOptions; 0: as many as num_heads
    /// Queries are turned by their positions in their sequence, keys by theirs in the source, each counted from 0.
    std::optional<RopeOptions> rope = {};
};

/// A source's keys and values, projected once and read in every step of a generation.
template <class T>
struct ProjectedSource {
    BasicTensor<T> keys;    ///< [batch, source tokens, kv_heads · head_dim], turned where the module has a rope
    BasicTensor<T> values;  ///< as keys
    std::vector<bool> source_mask;
    bool batched = false;  ///< whether the source had a batch axis
};

/// Cross-attention (Bahdanau et al. 2015; Vaswani et al. 2017, section 3.2.3, encoder-decoder attention): weights
/// [tokens, source tokens] are not square, and no position is in another's future, so nothing is causal.
/// Parameters W_query [d_out, d_query], W_key and W_value [d_out, d_source], out_proj [d_out, d_out].
/// A torch.nn.MultiheadAttention state_dict loads too, with or without kdim and vdim.
template <class T>
class BasicCrossAttention : public BasicModule<T> {
public:
    /// Throws Error(invalid_argument) unless num_heads divides d_out, and for rope options that do not fit head_dim.
    BasicCrossAttention(const CrossAttentionOptions& options, Generator& generator);

    /// queries [tokens, d_query], source [source tokens, d_source], or both with a leading batch axis
    /// → [.., tokens, d_out]. `source_mask`, when given, has an entry per source token of every sequence of the batch:
    /// true = may be attended to. A query none of whose keys may be attended to gets a context of zeros.
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                         const Pass<T>& pass = {}, const std::vector<bool>& source_mask = {});
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                         const Pass<T>& pass = {}, const std::vector<bool>& source_mask = {}) const;

    /// What forward makes of `source` before it meets a query.
    [[nodiscard]] ProjectedSource<T> project_source(const BasicTensor<T>& source,
                                                    const std::vector<bool>& source_mask = {},
                                                    const Runtime& runtime = Runtime::serial()) const;
    /// forward over a source that this module has projected: the same bits for each query, in as many calls as one
    /// likes. The first query stands at position `first_query` of its sequence, which matters to a rope alone.
    /// Remembers nothing for backward. A trace has neither source nor, with a rope, keys from before the turn.
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& queries, const ProjectedSource<T>& source,
                                         const Pass<T>& pass = {}, std::int64_t first_query = 0) const;

    /// Gradients of both sequences.
    struct InputGradients {
        BasicTensor<T> queries;
        BasicTensor<T> source;
    };
    /// d_output, shaped as forward's result → gradients of both inputs, after a forward in training. Adds to the
    /// parameters' gradients; dropout uses forward's mask.
    [[nodiscard]] InputGradients backward(const BasicTensor<T>& d_output);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;

protected:
    [[nodiscard]] StateDict<T> translate(StateDict<T> state) const override;

private:
    BasicTensor<T> compute(const BasicTensor<T>& queries, const BasicTensor<T>& source, const Pass<T>& pass,
                           const std::vector<bool>& source_mask, Remembered<T>& memory) const;

    CrossAttentionOptions options_;
    BasicLinear<T> query_, key_, value_, out_proj_;
    std::optional<Rope> rope_;
};

using CrossAttention = BasicCrossAttention<float>;

extern template class BasicCrossAttention<float>;
extern template class BasicCrossAttention<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
