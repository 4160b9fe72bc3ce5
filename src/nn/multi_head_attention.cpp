#include "qkv/nn/multi_head_attention.hpp"

#include <utility>

#include "core/check.hpp"
#include "nn/attention_steps.hpp"
#include "nn/projections.hpp"

namespace qkv::nn {

template <class T>
BasicMultiHeadAttention<T>::BasicMultiHeadAttention(const MultiHeadAttentionOptions& options, Generator& generator)
    : options_(options),
      query_(options.d_in, options.d_out, options.qkv_bias, generator),
      key_(options.d_in, options.d_out, options.qkv_bias, generator),
      value_(options.d_in, options.d_out, options.qkv_bias, generator),
      out_proj_(options.d_out, options.d_out, true, generator) {
    check_dropout(options.dropout);
    check_context_length(1, options.context_length);
    check_heads(options.d_out, options.num_heads);
}

template <class T>
BasicTensor<T> BasicMultiHeadAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    const bool batched = x.rank() == 3;
    const std::int64_t heads = options_.num_heads;
    const BasicTensor<T> inputs = with_batch(x, options_.d_in, "input");  // [batch, tokens, d_in]
    check_context_length(inputs.size(1), options_.context_length);

    const BasicTensor<T> queries = split_heads(query_.forward(inputs), heads);  // [batch · heads, tokens, head_dim]
    const BasicTensor<T> keys = split_heads(key_.forward(inputs), heads);
    const BasicTensor<T> values = split_heads(value_.forward(inputs), heads);
    const AttentionSteps<T> steps = attention_steps<T>(queries, keys, values, {.causal = true},
                                                       {options_.dropout, this->training()}, pass.generator);
    const BasicTensor<T> context = join_heads(steps.context, heads);  // [batch, tokens, d_out]
    BasicTensor<T> output = without_batch(out_proj_.forward(context), batched);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", x);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
        const Shape leading = batched ? Shape{x.size(0), heads} : Shape{heads};
        record_heads(queries, keys, values, leading, *pass.trace);
        record_steps(steps, leading, *pass.trace);
        record_output(context, out_proj_, output, *pass.trace);
    }
    return output;
}

template <class T>
void BasicMultiHeadAttention<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    query_.visit_parameters("W_query", visit);
    key_.visit_parameters("W_key", visit);
    value_.visit_parameters("W_value", visit);
    out_proj_.visit_parameters("out_proj", visit);
}

template <class T>
void BasicMultiHeadAttention<T>::add_buffers(StateDict<T>& state) const {
    state.emplace("mask", causal_buffer<T>(options_.context_length));
}

template <class T>
StateDict<T> BasicMultiHeadAttention<T>::translate(StateDict<T> state) const {
    return from_torch_multihead(std::move(state));
}

template class BasicMultiHeadAttention<float>;
template class BasicMultiHeadAttention<double>;

}  // namespace qkv::nn
