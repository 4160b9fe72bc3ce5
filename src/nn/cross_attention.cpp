#include "qkv/nn/cross_attention.hpp"

#include <utility>

#include "core/check.hpp"
#include "nn/attend.hpp"
#include "nn/projections.hpp"

namespace qkv::nn {

template <class T>
BasicCrossAttention<T>::BasicCrossAttention(const CrossAttentionOptions& options, Generator& generator)
    : options_(with_kv_heads(options)),
      query_(options.d_query, options.d_out, options.qkv_bias, generator),
      key_(options.d_source, kv_width(options_), options.qkv_bias, generator),
      value_(options.d_source, kv_width(options_), options.qkv_bias, generator),
      out_proj_(options.d_out, options.d_out, true, generator),
      rope_(rope_of(options_)) {
    check_dropout(options.dropout);
}

template <class T>
BasicTensor<T> BasicCrossAttention<T>::compute(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                               const Pass<T>& pass, const std::vector<bool>& source_mask,
                                               Remembered<T>& memory) const {
    memory.batched = queries.rank() == 3;
    const std::int64_t heads = options_.num_heads;
    memory.query_input = with_batch(queries, options_.d_query, "queries");  // [batch, tokens, d_query]
    memory.source_input = with_batch(source, options_.d_source, "source");  // [batch, source tokens, d_source]
    if (queries.rank() != source.rank() || memory.query_input.size(0) != memory.source_input.size(0)) {
        fail(ErrorCode::shape_mismatch, "queries have shape ", to_string(queries.shape()), " and source ",
             to_string(source.shape()), "; expected the same batch");
    }
    const std::int64_t source_entries = memory.source_input.size(0) * memory.source_input.size(1);
    if (!source_mask.empty() && static_cast<std::int64_t>(source_mask.size()) != source_entries) {
        fail(ErrorCode::shape_mismatch, "source_mask has ", source_mask.size(), " entries; expected ", source_entries,
             ", one per source token of the batch");
    }
    project(query_, key_, value_, memory);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", queries);
        pass.trace->record("source", source);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
    }
    attend(memory,
           {.heads = heads,
            .kv_heads = options_.num_kv_heads,
            .source_mask = source_mask,
            .dropout = {options_.dropout, this->training()},
            .rope = rope_,
            .leading = memory.batched ? Shape{queries.size(0), heads} : Shape{heads}},
           pass);
    BasicTensor<T> output = without_batch(out_proj_.forward(memory.context), memory.batched);
    if (pass.trace != nullptr) {
        record_output(memory.context, out_proj_, output, *pass.trace);
    }
    return output;
}

template <class T>
typename BasicCrossAttention<T>::InputGradients BasicCrossAttention<T>::backward(const BasicTensor<T>& d_output) {
    const Remembered<T>& memory = recall(this->memory_);
    const BasicTensor<T> d_out = checked_gradient(d_output, memory, options_.d_out);
    const BasicTensor<T> d_context = out_proj_.backward(memory.context, d_out);
    SequenceGradients<T> d = project_backward(query_, key_, value_, memory, d_context);
    return {without_batch(std::move(d.queries), memory.batched), without_batch(std::move(d.source), memory.batched)};
}

template <class T>
BasicTensor<T> BasicCrossAttention<T>::forward(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                               const Pass<T>& pass, const std::vector<bool>& source_mask) const {
    Remembered<T> memory;
    return compute(queries, source, pass, source_mask, memory);
}

template <class T>
BasicTensor<T> BasicCrossAttention<T>::forward(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                               const Pass<T>& pass, const std::vector<bool>& source_mask) {
    return remembering<T>(this->training(), this->memory_,
                          [&](Remembered<T>& memory) { return compute(queries, source, pass, source_mask, memory); });
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
