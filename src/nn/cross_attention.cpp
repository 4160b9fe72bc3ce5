#include "qkv/nn/cross_attention.hpp"

#include <utility>

#include "core/check.hpp"
#include "nn/attention_steps.hpp"
#include "nn/projections.hpp"

namespace qkv::nn {

template <class T>
BasicCrossAttention<T>::BasicCrossAttention(const CrossAttentionOptions& options, Generator& generator)
    : options_(options),
      query_(options.d_query, options.d_out, options.qkv_bias, generator),
      key_(options.d_source, options.d_out, options.qkv_bias, generator),
      value_(options.d_source, options.d_out, options.qkv_bias, generator),
      out_proj_(options.d_out, options.d_out, true, generator) {
    check_dropout(options.dropout);
    check_heads(options.d_out, options.num_heads);
}

template <class T>
BasicTensor<T> BasicCrossAttention<T>::forward(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                               const Pass<T>& pass, const std::vector<bool>& source_mask) const {
    const bool batched = queries.rank() == 3;
    const std::int64_t heads = options_.num_heads;
    const BasicTensor<T> asking = with_batch(queries, options_.d_query, "queries");  // [batch, tokens, d_query]
    const BasicTensor<T> read = with_batch(source, options_.d_source, "source");     // [batch, source tokens, d_source]
    if (queries.rank() != source.rank() || asking.size(0) != read.size(0)) {
        fail(ErrorCode::shape_mismatch, "queries have shape ", to_string(queries.shape()), " and source ",
             to_string(source.shape()), "; expected the same batch");
    }
    const std::int64_t source_entries = read.size(0) * read.size(1);
    if (!source_mask.empty() && static_cast<std::int64_t>(source_mask.size()) != source_entries) {
        fail(ErrorCode::shape_mismatch, "source_mask has ", source_mask.size(), " entries; expected ", source_entries,
             ", one per source token of the batch");
    }

    const BasicTensor<T> q = split_heads(query_.forward(asking), heads);  // [batch · heads, tokens, head_dim]
    const BasicTensor<T> k = split_heads(key_.forward(read), heads);      // [batch · heads, source tokens, head_dim]
    const BasicTensor<T> v = split_heads(value_.forward(read), heads);
    const AttentionSteps<T> steps = attention_steps<T>(q, k, v, {.keys = source_mask, .heads_per_batch = heads},
                                                       {options_.dropout, this->training()}, pass.generator);
    const BasicTensor<T> context = join_heads(steps.context, heads);  // [batch, tokens, d_out]
    BasicTensor<T> output = without_batch(out_proj_.forward(context), batched);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", queries);
        pass.trace->record("source", source);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
        const Shape leading = batched ? Shape{queries.size(0), heads} : Shape{heads};
        record_heads(q, k, v, leading, *pass.trace);
        record_steps(steps, leading, *pass.trace);
        record_output(context, out_proj_, output, *pass.trace);
    }
    return output;
}

template <class T>
void BasicCrossAttention<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    query_.visit_parameters("W_query", visit);
    key_.visit_parameters("W_key", visit);
    value_.visit_parameters("W_value", visit);
    out_proj_.visit_parameters("out_proj", visit);
}

template <class T>
StateDict<T> BasicCrossAttention<T>::translate(StateDict<T> state) const {
    return from_torch_multihead(std::move(state));
}

template class BasicCrossAttention<float>;
template class BasicCrossAttention<double>;

}  // namespace qkv::nn
