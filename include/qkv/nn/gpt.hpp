// The stages' destination: a language model of transformer blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "qkv/export.h"
#include "qkv/kv_cache.hpp"
#include "qkv/nn/cross_entropy.hpp"
#include "qkv/nn/embedding.hpp"
#include "qkv/nn/layer_norm.hpp"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"
#include "qkv/nn/transformer_block.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

struct GptOptions {
    std::int64_t vocab_size = 0;
    std::int64_t context_length = 0;  ///< the longest sequence
    std::int64_t emb_dim = 0;
    std::int64_t num_heads = 1;
    std::int64_t num_layers = 1;
    double dropout = 0.0;  ///< of embeddings, weights and what the shortcuts join, in training, 0 to 1
    bool qkv_bias = false;
    bool tie_weights = false;  ///< out_head.weight is tok_emb.weight (Press & Wolf 2017)
    Gelu gelu = Gelu::tanh;
};

/// The options of the Gpt that `state` belongs to, from its names and shapes; dropout 0 and Gelu::tanh. `state` is of a
/// Gpt or of Hugging Face's GPT2LMHeadModel (BasicGpt::load_state_dict takes both). How many heads there are, no shape
/// tells. Throws Error(shape_mismatch) naming what is missing.
template <class T>
[[nodiscard]] QKV_EXPORT GptOptions gpt_options_of(const StateDict<T>& state, std::int64_t num_heads);

/// Sequences that a Gpt generates: their keys and values in each of its layers.
class GptCache {
public:
    /// Room for `sequences` sequences of up to context_length tokens, all empty; keys and values are kept as `dtype`,
    /// a float type. Throws Error(invalid_argument) for sizes below one and heads that do not divide emb_dim.
    explicit GptCache(const GptOptions& options, std::int64_t sequences = 1, DType dtype = DType::f32);

    [[nodiscard]] std::int64_t sequences() const noexcept;
    [[nodiscard]] std::int64_t layers() const noexcept { return static_cast<std::int64_t>(layers_.size()); }
    /// Tokens of a sequence, counted from 0, so far: the position of its next one.
    [[nodiscard]] std::int64_t size(std::int64_t sequence) const;
    /// Forgets all but the first `tokens` tokens of a sequence.
    void truncate(std::int64_t sequence, std::int64_t tokens);

    /// A layer's cache, and the ids that the sequences have in it.
    struct Layer {
        KvCache cache;
        std::vector<SequenceId> ids;
    };
    /// Throws Error(out_of_range) unless 0 ≤ layer < layers().
    [[nodiscard]] Layer& layer(std::int64_t layer);

private:
    void check_sequence(std::int64_t sequence) const;
    std::vector<Layer> layers_;
};

/// A GPT as teaching texts build it (and GPT-2 is: Radford et al. 2019, section 2.3):
///
///     x = dropout(tok_emb[ids] + pos_emb[0, 1, …])      num_layers transformer blocks      logits =
///     out_head(final_norm(x))
///
/// Parameters tok_emb.weight, pos_emb.weight, trf_blocks.N.* (TransformerBlock), final_norm.scale, final_norm.shift,
/// out_head.weight, drawn in this order; buffers trf_blocks.N.att.mask. With tied weights out_head.weight is drawn and
/// replaced by tok_emb.weight, as it is in PyTorch by assignment: one parameter, which a state_dict names twice.
///
/// load_state_dict takes a state_dict of Hugging Face's GPT2LMHeadModel too, with or without its `transformer.` prefix,
/// lm_head.weight and mask buffers; it needs qkv_bias.
template <class T>
class BasicGpt : public BasicModule<T> {
public:
    /// Throws Error(invalid_argument) for sizes below one, heads that do not divide emb_dim, a dropout out of 0 to 1.
    BasicGpt(const GptOptions& options, Generator& generator);

    [[nodiscard]] const GptOptions& options() const noexcept { return options_; }

    /// ids [batch, tokens] row-major, tokens ≤ context_length → logits of the token after each [batch, tokens,
    /// vocab_size]. In training dropout draws from pass.generator for the embeddings, then block by block. A trace gets
    /// `embeddings` (what enters the first block), what block N's attention records as trf_blocks.N.att.*, and
    /// `logits`.
    [[nodiscard]] BasicTensor<T> forward(std::span<const std::int64_t> ids, std::int64_t batch,
                                         const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(std::span<const std::int64_t> ids, std::int64_t batch,
                                         const Pass<T>& pass = {}) const;

    /// Generation: ids are the next tokens of the cache's sequences, as many for each, row-major → logits
    /// [sequences, new tokens, vocab_size]; or, with `cumulative_tokens`, packed as in CacheBatch, where a sequence may
    /// have none → [new tokens, vocab_size].
    ///
    /// A sequence gets the logits of forward over the whole of it: the same bits however it is cut into calls and
    /// batches, equal to forward by rounding. Remembers nothing for backward. Throws, before anything is appended,
    /// Error(out_of_range) past context_length, Error(shape_mismatch) for a cache of another model, Error(unsupported)
    /// with active dropout.
    [[nodiscard]] BasicTensor<T> forward(std::span<const std::int64_t> ids, GptCache& cache, const Pass<T>& pass = {},
                                         std::span<const std::int64_t> cumulative_tokens = {}) const;

    /// From the gradient of the logits (shaped as these; move it here, and its memory is free after the first layer) to
    /// all parameters' gradients, which grow. Once per forward in training: what that remembered is given back on the
    /// way.
    void backward(BasicTensor<T> d_logits);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;
    void visit_children(const typename BasicModule<T>::ChildVisitor& visit) override;

protected:
    void add_shared(StateDict<T>& state) const override;
    [[nodiscard]] StateDict<T> translate(StateDict<T> state) const override;
    void forget_own() override { kept_.reset(); }

private:
    struct Kept;
    template <class Model>
    static BasicTensor<T> run(Model& model, std::span<const std::int64_t> ids, std::int64_t batch, const Pass<T>& pass,
                              Kept& kept);
    [[nodiscard]] BasicTensor<T> embedded(std::span<const std::int64_t> ids, std::span<const std::int64_t> positions,
                                          const Runtime& runtime) const;
    [[nodiscard]] BasicTensor<T> logits_of(const BasicTensor<T>& hidden, const Pass<T>& pass) const;
    Parameter<T>& token_table() noexcept;

    GptOptions options_;
    std::optional<BasicEmbedding<T>> tok_emb_;  // absent with tied weights: out_head_ has the table
    BasicEmbedding<T> pos_emb_;
    std::vector<BasicTransformerBlock<T>> trf_blocks_;
    BasicLayerNorm<T> final_norm_;
    BasicLinear<T> out_head_;
    std::shared_ptr<const Kept> kept_;
};

using Gpt = BasicGpt<float>;

extern template class BasicGpt<float>;
extern template class BasicGpt<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
