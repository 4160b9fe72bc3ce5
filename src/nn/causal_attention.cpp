#include "qkv/nn/causal_attention.hpp"

#include <utility>

#include "nn/attend.hpp"
#include "nn/projections.hpp"

namespace qkv::nn {

template <class T>
BasicCausalAttention<T>::BasicCausalAttention(const CausalAttentionOptions& options, Generator& generator)
    : options_(options),
      query_(options.d_in, options.d_out, options.qkv_bias, generator),
      key_(options.d_in, options.d_out, options.qkv_bias, generator),
      value_(options.d_in, options.d_out, options.qkv_bias, generator) {
    check_dropout(options.dropout);
    check_context_length(1, options.context_length);
}

template <class T>
BasicTensor<T> BasicCausalAttention<T>::compute(const BasicTensor<T>& x, const Pass<T>& pass,
                                                Remembered<T>& memory) const {
    memory.runtime = pass.runtime;
    memory.batched = x.rank() == 3;
    memory.query_input = with_batch(x, options_.d_in, "input");
    check_context_length(memory.query_input.size(1), options_.context_length);
    project(query_, key_, value_, memory);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", x);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
    }
    attend(memory,
           {.causal = true,
            .dropout = {options_.dropout, this->training()},
            .leading = memory.batched ? Shape{x.size(0)} : Shape{}},
           pass);
    BasicTensor<T> context = without_batch(memory.context, memory.batched);
    if (pass.trace != nullptr) {
        pass.trace->record("context", context);
    }
    return context;
}

template <class T>
BasicTensor<T> BasicCausalAttention<T>::backward(const BasicTensor<T>& d_output) {
    const Remembered<T>& memory = recall(this->memory_);
    const BasicTensor<T> d_context = checked_gradient(d_output, memory, options_.d_out);
    SequenceGradients<T> d = project_backward(query_, key_, value_, memory, d_context);
    return without_batch(std::move(d.queries), memory.batched);
}

template <class T>
BasicTensor<T> BasicCausalAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    Remembered<T> memory;
    return compute(x, pass, memory);
}

template <class T>
BasicTensor<T> BasicCausalAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) {
    return remembering<T>(this->training(), this->memory_,
                          [&](Remembered<T>& memory) { return compute(x, pass, memory); });
}

template <class T>
void BasicCausalAttention<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    query_.visit_parameters("W_query", visit);
    key_.visit_parameters("W_key", visit);
    value_.visit_parameters("W_value", visit);
}

template <class T>
void BasicCausalAttention<T>::visit_masks(const typename BasicModule<T>::MaskVisitor& visit) const {
    visit("mask", options_.context_length);
}

template class BasicCausalAttention<float>;
template class BasicCausalAttention<double>;

}  // namespace qkv::nn
