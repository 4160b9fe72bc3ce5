#include "qkv/nn/gpt.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "core/check.hpp"
#include "nn/dropout.hpp"
#include "nn/gpt_state.hpp"
#include "nn/remember.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

namespace {

GptOptions checked(const GptOptions& options) {
    for (const auto& [name, size] :
         {std::pair{"vocab_size", options.vocab_size}, std::pair{"context_length", options.context_length},
          std::pair{"emb_dim", options.emb_dim}, std::pair{"num_layers", options.num_layers}}) {
        if (size < 1) {
            fail(ErrorCode::invalid_argument, name, " is ", size, "; expected 1 or more");
        }
    }
    check_heads(options.emb_dim, options.num_heads);
    check_dropout(options.dropout);
    return options;
}

template <class T>
std::vector<BasicTransformerBlock<T>> drawn_blocks(const GptOptions& options, Generator& generator) {
    std::vector<BasicTransformerBlock<T>> blocks;
    blocks.reserve(static_cast<std::size_t>(options.num_layers));
    for (std::int64_t layer = 0; layer < options.num_layers; ++layer) {
        blocks.emplace_back(TransformerBlockOptions{.emb_dim = options.emb_dim,
                                                    .context_length = options.context_length,
                                                    .num_heads = options.num_heads,
                                                    .dropout = options.dropout,
                                                    .qkv_bias = options.qkv_bias,
                                                    .gelu = options.gelu},
                            generator);
    }
    return blocks;
}

std::string block_name(std::size_t layer) { return "trf_blocks." + std::to_string(layer); }

/// A block's pass; what its attention records gets the block's name.
template <class T, class Compute>
BasicTensor<T> traced(const Pass<T>& pass, std::size_t layer, const Compute& compute) {
    BasicTrace<T> inner;
    BasicTensor<T> x = compute(Pass<T>{
        .generator = pass.generator, .trace = pass.trace != nullptr ? &inner : nullptr, .runtime = pass.runtime});
    if (pass.trace != nullptr) {
        pass.trace->record_all(block_name(layer) + ".att.", std::move(inner));
    }
    return x;
}

std::vector<std::int64_t> sizes_of(const GptCache& cache) {
    std::vector<std::int64_t> sizes;
    sizes.reserve(static_cast<std::size_t>(cache.sequences()));
    for (std::int64_t sequence = 0; sequence < cache.sequences(); ++sequence) {
        sizes.push_back(cache.size(sequence));
    }
    return sizes;
}

/// Where the new tokens of the cache's sequences stand. Throws as forward over a cache does.
std::vector<std::int64_t> next_positions(std::int64_t count, const GptCache& cache,
                                         std::span<const std::int64_t> cumulative_tokens, std::int64_t context_length) {
    const std::int64_t sequences = cache.sequences();
    std::vector<std::int64_t> ends(cumulative_tokens.begin(), cumulative_tokens.end());
    if (ends.empty()) {
        if (count == 0 || count % sequences != 0) {
            fail(ErrorCode::shape_mismatch, count, " ids for ", sequences,
                 " sequences; expected as many for each, and at least one");
        }
        for (std::int64_t sequence = 0; sequence <= sequences; ++sequence) {
            ends.push_back(count / sequences * sequence);
        }
    }
    if (std::ssize(ends) != sequences + 1 || ends.front() != 0 || ends.back() != count ||
        !std::ranges::is_sorted(ends)) {
        fail(ErrorCode::shape_mismatch, "cumulative_tokens has ", ends.size(), " entries from ", ends.front(), " to ",
             ends.back(), "; expected ", sequences + 1, " that do not fall, from 0 to the ", count, " ids");
    }
    std::vector<std::int64_t> positions;
    for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
        const auto place = static_cast<std::size_t>(sequence);
        const std::int64_t tokens = ends[place + 1] - ends[place];
        check_context_length(cache.size(sequence) + tokens, context_length);
        for (std::int64_t i = 0; i < tokens; ++i) {
            positions.push_back(cache.size(sequence) + i);
        }
    }
    return positions;
}

}  // namespace

template <class T>
struct BasicGpt<T>::Kept {
    std::vector<std::int64_t> ids;        // [batch, tokens]
    std::vector<std::int64_t> positions;  // likewise
    BasicTensor<T> hidden;                // what leaves the last block
    KeepBytes keep;                       // dropout of the embeddings, or empty
    Shape logits_shape;
    const Runtime* runtime = &Runtime::serial();
};

template <class T>
BasicGpt<T>::BasicGpt(const GptOptions& options, Generator& generator)
    : options_(checked(options)),
      tok_emb_(std::in_place, options.vocab_size, options.emb_dim, generator),
      pos_emb_(options.context_length, options.emb_dim, generator),
      trf_blocks_(drawn_blocks<T>(options, generator)),
      final_norm_(options.emb_dim),
      out_head_(options.emb_dim, options.vocab_size, false, generator) {
    if (options.tie_weights) {
        out_head_.weight_parameter() = std::move(tok_emb_->weight_parameter());
        tok_emb_.reset();
    }
}

template <class T>
Parameter<T>& BasicGpt<T>::token_table() noexcept {
    return tok_emb_ ? tok_emb_->weight_parameter() : out_head_.weight_parameter();
}

template <class T>
BasicTensor<T> BasicGpt<T>::embedded(std::span<const std::int64_t> ids, std::span<const std::int64_t> positions,
                                     const Runtime& runtime) const {
    BasicTensor<T> x = embedding(ids, tok_emb_ ? tok_emb_->weight() : out_head_.weight(), runtime);
    add_to(x, pos_emb_.forward(positions, runtime), runtime);
    return x;
}

template <class T>
template <class Model>
BasicTensor<T> BasicGpt<T>::run(Model& model, std::span<const std::int64_t> ids, std::int64_t batch,
                                const Pass<T>& pass, Kept& kept) {
    const GptOptions& options = model.options_;
    const auto count = static_cast<std::int64_t>(ids.size());
    if (batch < 1 || count == 0 || count % batch != 0) {
        fail(ErrorCode::shape_mismatch, count, " ids in a batch of ", batch,
             "; expected as many for each sequence, and at least one");
    }
    const std::int64_t tokens = count / batch;
    check_context_length(tokens, options.context_length);
    kept.runtime = pass.runtime;
    kept.ids.assign(ids.begin(), ids.end());
    kept.positions.resize(ids.size());
    for (std::int64_t i = 0; i < count; ++i) {
        kept.positions[static_cast<std::size_t>(i)] = i % tokens;
    }
    kept.logits_shape = {batch, tokens, options.vocab_size};

    BasicTensor<T> x =
        model.embedded(kept.ids, kept.positions, *pass.runtime).reshaped({batch, tokens, options.emb_dim});
    kept.keep = drawn_keep(x.numel(), {options.dropout, model.training()}, pass.generator);
    drop(x, kept.keep, options.dropout, *pass.runtime);
    if (pass.trace != nullptr) {
        pass.trace->record("embeddings", x);
    }
    for (std::size_t layer = 0; layer < model.trf_blocks_.size(); ++layer) {
        x = traced(pass, layer,
                   [&](const Pass<T>& inner) { return model.trf_blocks_[layer].forward(std::move(x), inner); });
    }
    kept.hidden = std::move(x);
    return model.logits_of(kept.hidden, pass);
}

template <class T>
BasicTensor<T> BasicGpt<T>::forward(std::span<const std::int64_t> ids, std::int64_t batch, const Pass<T>& pass) const {
    Kept kept;
    return run(*this, ids, batch, pass, kept);
}

template <class T>
BasicTensor<T> BasicGpt<T>::forward(std::span<const std::int64_t> ids, std::int64_t batch, const Pass<T>& pass) {
    this->forget();  // before, not after: two forwards' memory is never held at once
    return remembering<T>(this->training(), kept_, [&](Kept& kept) { return run(*this, ids, batch, pass, kept); });
}

template <class T>
BasicTensor<T> BasicGpt<T>::logits_of(const BasicTensor<T>& hidden, const Pass<T>& pass) const {
    BasicTensor<T> logits = out_head_.forward(final_norm_.forward(hidden, *pass.runtime), *pass.runtime);
    if (pass.trace != nullptr) {
        pass.trace->record("logits", logits);
    }
    return logits;
}

template <class T>
BasicTensor<T> BasicGpt<T>::forward(std::span<const std::int64_t> ids, GptCache& cache, const Pass<T>& pass,
                                    std::span<const std::int64_t> cumulative_tokens) const {
    if (this->training() && options_.dropout > 0) {
        fail(ErrorCode::unsupported, "dropout ", options_.dropout, " in training over a cache; call eval()");
    }
    if (cache.layers() != options_.num_layers) {
        fail(ErrorCode::shape_mismatch, "the cache has ", cache.layers(), " layers; expected ", options_.num_layers);
    }
    const auto count = static_cast<std::int64_t>(ids.size());
    const std::vector<std::int64_t> positions =
        next_positions(count, cache, cumulative_tokens, options_.context_length);
    BasicTensor<T> x = embedded(ids, positions, *pass.runtime);
    if (cumulative_tokens.empty()) {
        x = std::move(x).reshaped({cache.sequences(), count / cache.sequences(), options_.emb_dim});
    }
    if (pass.trace != nullptr) {
        pass.trace->record("embeddings", x);
    }
    const std::vector<std::int64_t> sizes = sizes_of(cache);
    try {
        for (std::size_t layer = 0; layer < trf_blocks_.size(); ++layer) {
            GptCache::Layer& kept = cache.layer(static_cast<std::int64_t>(layer));
            x = traced(pass, layer, [&](const Pass<T>& inner) {
                return trf_blocks_[layer].forward(std::move(x), kept.cache, {kept.ids, cumulative_tokens}, inner);
            });
        }
        return logits_of(x, pass);
    } catch (...) {  // the layers before have appended already
        for (std::int64_t sequence = 0; sequence < cache.sequences(); ++sequence) {
            cache.truncate(sequence, sizes[static_cast<std::size_t>(sequence)]);
        }
        throw;
    }
}

template <class T>
void BasicGpt<T>::backward(BasicTensor<T> d_logits) {
    const Kept& kept = recall(kept_);
    check_gradient(d_logits, kept.logits_shape);
    const Runtime& runtime = *kept.runtime;
    BasicTensor<T> d_x = out_head_.backward(final_norm_.forward(kept.hidden, runtime), d_logits, runtime);
    d_logits = BasicTensor<T>();
    d_x = final_norm_.backward(kept.hidden, d_x, runtime);
    for (auto block = trf_blocks_.rbegin(); block != trf_blocks_.rend(); ++block) {
        d_x = block->backward(d_x);
        block->forget();
    }
    drop(d_x, kept.keep, options_.dropout, runtime);
    d_x = std::move(d_x).reshaped({static_cast<std::int64_t>(kept.ids.size()), options_.emb_dim});
    embedding_backward<T>(kept.ids, d_x, token_table(), runtime);
    pos_emb_.backward(kept.positions, d_x, runtime);
    kept_.reset();
}

template <class T>
void BasicGpt<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    visit("tok_emb.weight", token_table());
    pos_emb_.visit_parameters("pos_emb", visit);
    BasicModule<T>::visit_parameters(visit);
    final_norm_.visit_parameters("final_norm", visit);
    if (tok_emb_) {
        out_head_.visit_parameters("out_head", visit);
    }
}

template <class T>
void BasicGpt<T>::visit_children(const typename BasicModule<T>::ChildVisitor& visit) {
    for (std::size_t layer = 0; layer < trf_blocks_.size(); ++layer) {
        visit(block_name(layer), trf_blocks_[layer]);
    }
}

template <class T>
void BasicGpt<T>::add_shared(StateDict<T>& state) const {
    if (!tok_emb_) {
        state.emplace("out_head.weight", out_head_.weight());
    }
}

template <class T>
StateDict<T> BasicGpt<T>::translate(StateDict<T> state) const {
    state = from_gpt2(std::move(state));
    return tok_emb_ ? std::move(state) : with_one_table(std::move(state));
}

template class BasicGpt<float>;
template class BasicGpt<double>;

}  // namespace qkv::nn
