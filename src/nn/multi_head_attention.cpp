#include "qkv/nn/multi_head_attention.hpp"

#include <optional>
#include <utility>

#include "core/check.hpp"
#include "nn/attend.hpp"
#include "nn/attend_cached.hpp"
#include "nn/projections.hpp"

namespace qkv::nn {

template <class T>
BasicMultiHeadAttention<T>::BasicMultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator)
    : options_(with_kv_heads(options)),
      query_(options.d_in, options.d_out, options.qkv_bias, generator),
      key_(options.d_in, kv_width(options_), options.qkv_bias, generator),
      value_(options.d_in, kv_width(options_), options.qkv_bias, generator),
      out_proj_(options.d_out, options.d_out, true, generator),
      rope_(rope_of(options_)) {
    check_dropout(options.dropout);
    check_context_length(1, options.context_length);
}

template <class T>
void BasicMultiHeadAttention<T>::read_input(BasicTensor<T> x, const Pass<T>& pass, Remembered<T>& memory) const {
    memory.runtime = pass.runtime;
    memory.batched = x.rank() == 3;
    memory.query_input = with_batch(std::move(x), options_.d_in, "input");  // [batch, tokens, d_in]
}

template <class T>
void BasicMultiHeadAttention<T>::project_input(Remembered<T>& memory, BasicTrace<T>* trace) const {
    project(query_, key_, value_, memory);
    if (trace != nullptr) {
        trace->record("inputs", without_batch(memory.query_input, memory.batched));
        record_layers<T>({&query_, &key_, &value_}, *trace);
    }
}

template <class T>
BasicTensor<T> BasicMultiHeadAttention<T>::compute(BasicTensor<T> x, const Pass<T>& pass, Remembered<T>& memory) const {
    read_input(std::move(x), pass, memory);
    check_context_length(memory.query_input.size(1), options_.context_length);
    project_input(memory, pass.trace);
    return attend_and_project(memory,
                              {.heads = options_.num_heads,
                               .kv_heads = options_.num_kv_heads,
                               .causal = true,
                               .dropout = {options_.dropout, this->training()},
                               .rope = rope_},
                              out_proj_, pass);
}

template <class T>
BasicTensor<T> BasicMultiHeadAttention<T>::backward(const BasicTensor<T>& d_output) {
    const Remembered<T>& memory = recall(this->memory_);
    check_gradient(d_output, memory, options_.d_out);
    std::optional<BasicTensor<T>> batch;  // of one sequence
    const BasicTensor<T>& d_out = memory.batched ? d_output : batch.emplace(d_output.reshaped(memory.context.shape()));
    const BasicTensor<T> d_context = out_proj_.backward(memory.context, d_out, *memory.runtime);
    SequenceGradients<T> d = project_backward(query_, key_, value_, memory, d_context);
    return without_batch(std::move(d.queries), memory.batched);
}

template <class T>
BasicTensor<T> BasicMultiHeadAttention<T>::forward(BasicTensor<T> x, const Pass<T>& pass) const {
    Remembered<T> memory;
    return compute(std::move(x), pass, memory);
}

template <class T>
BasicTensor<T> BasicMultiHeadAttention<T>::forward(BasicTensor<T> x, const Pass<T>& pass) {
    return remembering<T>(this->training(), this->memory_,
                          [&](Remembered<T>& memory) { return compute(std::move(x), pass, memory); });
}

template <class T>
BasicTensor<T> BasicMultiHeadAttention<T>::forward(BasicTensor<T> x, KvCache& cache, const CacheBatch& batch,
                                                   const Pass<T>& pass) const {
    if (this->training() && options_.dropout > 0) {
        fail(ErrorCode::unsupported, "dropout ", options_.dropout, " in training over a cache; call eval()");
    }
    Remembered<T> memory;
    read_input(std::move(x), pass, memory);
    project_input(memory, pass.trace);
    attend_cached(memory,
                  {.heads = options_.num_heads,
                   .kv_heads = options_.num_kv_heads,
                   .rope = rope_,
                   .leading = leading_axes(memory, options_.num_heads)},
                  options_.context_length, cache, batch, pass);
    return project_output(memory, out_proj_, pass.trace);
}

template <class T>
void BasicMultiHeadAttention<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    query_.visit_parameters("W_query", visit);
    key_.visit_parameters("W_key", visit);
    value_.visit_parameters("W_value", visit);
    out_proj_.visit_parameters("out_proj", visit);
}

template <class T>
void BasicMultiHeadAttention<T>::visit_masks(const typename BasicModule<T>::MaskVisitor& visit) const {
    visit("mask", options_.context_length);
}

template <class T>
StateDict<T> BasicMultiHeadAttention<T>::translate(StateDict<T> state) const {
    return from_torch_multihead(std::move(state));
}

template class BasicMultiHeadAttention<float>;
template class BasicMultiHeadAttention<double>;

}  // namespace qkv::nn
