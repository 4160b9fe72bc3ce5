#include "qkv/nn/causal_attention.hpp"

#include "core/check.hpp"
#include "nn/attention_steps.hpp"
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
BasicTensor<T> BasicCausalAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    const bool batched = x.rank() == 3;
    const BasicTensor<T> inputs = with_batch(x, options_.d_in, "input");
    check_context_length(inputs.size(1), options_.context_length);
    const BasicTensor<T> queries = query_.forward(inputs);
    const BasicTensor<T> keys = key_.forward(inputs);
    const BasicTensor<T> values = value_.forward(inputs);
    const AttentionSteps<T> steps = attention_steps<T>(queries, keys, values, {.causal = true},
                                                       {options_.dropout, this->training()}, pass.generator);
    BasicTensor<T> context = without_batch(steps.context, batched);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", x);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
        const Shape leading = batched ? Shape{x.size(0)} : Shape{};
        record_heads(queries, keys, values, leading, *pass.trace);
        record_steps(steps, leading, *pass.trace);
        pass.trace->record("context", context);
    }
    return context;
}

template <class T>
void BasicCausalAttention<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    query_.visit_parameters("W_query", visit);
    key_.visit_parameters("W_key", visit);
    value_.visit_parameters("W_value", visit);
}

template <class T>
void BasicCausalAttention<T>::add_buffers(StateDict<T>& state) const {
    state.emplace("mask", causal_buffer<T>(options_.context_length));
}

template class BasicCausalAttention<float>;
template class BasicCausalAttention<double>;

}  // namespace qkv::nn
