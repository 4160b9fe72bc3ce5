#include "qkv/nn/transformer_block.hpp"

#include <utility>
#include <vector>

#include "nn/dropout.hpp"
#include "nn/remember.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

template <class T>
struct BasicTransformerBlock<T>::Kept {
    BasicTensor<T> x;       // what enters attention's half
    BasicTensor<T> middle;  // what enters the feed-forward's
    KeepBytes keep_att;     // shortcut dropout of attention's output, or empty
    KeepBytes keep_ff;
    const Runtime* runtime = &Runtime::serial();
};

template <class T>
BasicTransformerBlock<T>::BasicTransformerBlock(const TransformerBlockOptions& options, Generator& generator)
    : dropout_(options.dropout),
      att_({.d_in = options.emb_dim,
            .d_out = options.emb_dim,
            .context_length = options.context_length,
            .dropout = options.dropout,
            .num_heads = options.num_heads,
            .qkv_bias = options.qkv_bias},
           generator),
      ff_(options.emb_dim, options.gelu, generator),
      norm1_(options.emb_dim),
      norm2_(options.emb_dim) {}

template <class T>
template <class Block>
BasicTensor<T> BasicTransformerBlock<T>::run(Block& block, BasicTensor<T> x, const Pass<T>& pass, Kept& kept) {
    const StepDropout dropout{block.dropout_, block.training()};
    kept.runtime = pass.runtime;
    kept.x = std::move(x);
    kept.middle = block.att_.forward(block.norm1_.forward(kept.x, *pass.runtime), pass);
    kept.keep_att = drawn_keep(kept.middle.numel(), dropout, pass.generator);
    drop(kept.middle, kept.keep_att, block.dropout_, *pass.runtime);
    add_to(kept.middle, kept.x, *pass.runtime);

    BasicTensor<T> output = block.ff_.forward(block.norm2_.forward(kept.middle, *pass.runtime), pass);
    kept.keep_ff = drawn_keep(output.numel(), dropout, pass.generator);
    drop(output, kept.keep_ff, block.dropout_, *pass.runtime);
    add_to(output, kept.middle, *pass.runtime);
    return output;
}

template <class T>
BasicTensor<T> BasicTransformerBlock<T>::forward(BasicTensor<T> x, const Pass<T>& pass) const {
    Kept kept;
    return run(*this, std::move(x), pass, kept);
}

template <class T>
BasicTensor<T> BasicTransformerBlock<T>::forward(BasicTensor<T> x, const Pass<T>& pass) {
    return remembering<T>(this->training(), kept_, [&](Kept& kept) { return run(*this, std::move(x), pass, kept); });
}

template <class T>
BasicTensor<T> BasicTransformerBlock<T>::forward(BasicTensor<T> x, KvCache& cache, const CacheBatch& batch,
                                                 const Pass<T>& pass) const {
    add_to(x, att_.forward(norm1_.forward(x, *pass.runtime), cache, batch, pass), *pass.runtime);
    add_to(x, ff_.forward(norm2_.forward(x, *pass.runtime), pass), *pass.runtime);
    return x;
}

template <class T>
BasicTensor<T> BasicTransformerBlock<T>::backward(const BasicTensor<T>& d_output) {
    const Kept& kept = recall(kept_);
    check_gradient(d_output, kept.x.shape());
    const Runtime& runtime = *kept.runtime;
    // Each half passes the gradient on twice: along its shortcut, and through what the shortcut goes around.
    BasicTensor<T> room;
    const BasicTensor<T>& d_ff = dropped(d_output, kept.keep_ff, dropout_, room, runtime);
    BasicTensor<T> d_middle = norm2_.backward(kept.middle, ff_.backward(d_ff), runtime);
    add_to(d_middle, d_output, runtime);

    const BasicTensor<T>& d_att = dropped(d_middle, kept.keep_att, dropout_, room, runtime);
    BasicTensor<T> d_x = norm1_.backward(kept.x, att_.backward(d_att), runtime);
    add_to(d_x, d_middle, runtime);
    return d_x;
}

template <class T>
void BasicTransformerBlock<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    BasicModule<T>::visit_parameters(visit);
    norm1_.visit_parameters("norm1", visit);
    norm2_.visit_parameters("norm2", visit);
}

template <class T>
void BasicTransformerBlock<T>::visit_children(const typename BasicModule<T>::ChildVisitor& visit) {
    visit("att", att_);
    visit("ff", ff_);
}

template class BasicTransformerBlock<float>;
template class BasicTransformerBlock<double>;

}  // namespace qkv::nn
