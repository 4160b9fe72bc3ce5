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

namespace {

void check_same_batch(const Shape& queries, const Shape& source) {
    if (queries.size() != source.size() || (queries.size() == 3 && queries[0] != source[0])) {
        fail(ErrorCode::shape_mismatch, "queries have shape ", to_string(queries), " and source ", to_string(source),
             "; expected the same batch");
    }
}

/// `source` is [batch, source tokens, width].
template <class T>
void check_source_mask(const std::vector<bool>& source_mask, const BasicTensor<T>& source) {
    const std::int64_t entries = source.size(0) * source.size(1);
    if (!source_mask.empty() && static_cast<std::int64_t>(source_mask.size()) != entries) {
        fail(ErrorCode::shape_mismatch, "source_mask has ", source_mask.size(), " entries; expected ", entries,
             ", one per source token of the batch");
    }
}

}  // namespace

template <class T>
BasicTensor<T> BasicCrossAttention<T>::compute(const BasicTensor<T>& queries, const BasicTensor<T>& source,
                                               const Pass<T>& pass, const std::vector<bool>& source_mask,
                                               Remembered<T>& memory) const {
    memory.runtime = pass.runtime;
    memory.batched = queries.rank() == 3;
    memory.query_input = with_batch(queries, options_.d_query, "queries");  // [batch, tokens, d_query]
    memory.source_input = with_batch(source, options_.d_source, "source");  // [batch, source tokens, d_source]
    check_same_batch(queries.shape(), source.shape());
    check_source_mask(source_mask, memory.source());
    project(query_, key_, value_, memory);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", queries);
        pass.trace->record("source", source);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
    }
    return attend_and_project(memory,
                              {.heads = options_.num_heads,
                               .kv_heads = options_.num_kv_heads,
                               .source_mask = source_mask,
                               .dropout = {options_.dropout, this->training()},
                               .rope = rope_},
                              out_proj_, pass);
}

template <class T>
ProjectedSource<T> BasicCrossAttention<T>::project_source(const BasicTensor<T>& source,
                                                          const std::vector<bool>& source_mask,
                                                          const Runtime& runtime) const {
    const BasicTensor<T> batch = with_batch(source, options_.d_source, "source");
    check_source_mask(source_mask, batch);
    ProjectedSource<T> projected{key_.forward(batch, runtime), value_.forward(batch, runtime), source_mask,
                                 source.rank() == 3};
    if (rope_) {
        const auto keys = heads_of(projected.keys, options_.num_kv_heads);
        rope_->apply(keys, keys, {}, runtime);
    }
    return projected;
}

template <class T>
BasicTensor<T> BasicCrossAttention<T>::forward(const BasicTensor<T>& queries, const ProjectedSource<T>& source,
                                               const Pass<T>& pass, std::int64_t first_query) const {
    Remembered<T> memory;
    memory.runtime = pass.runtime;
    memory.batched = queries.rank() == 3;
    memory.query_input = with_batch(queries, options_.d_query, "queries");
    const Shape expected{memory.query_input.size(0), source.keys.rank() == 3 ? source.keys.size(1) : 0,
                         kv_width(options_)};
    if (source.keys.shape() != expected || source.values.shape() != expected || source.batched != memory.batched) {
        fail(ErrorCode::shape_mismatch, "queries have shape ", to_string(queries.shape()),
             " and the projected source keys ", to_string(source.keys.shape()), " and values ",
             to_string(source.values.shape()), "; expected the same batch, from project_source() of this module");
    }
    check_source_mask(source.source_mask, source.keys);
    memory.queries = query_.forward(memory.query_input, *memory.runtime);
    memory.keys = source.keys;
    memory.values = source.values;
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", queries);
        record_layers<T>({&query_, &key_, &value_}, *pass.trace);
    }
    return attend_and_project(memory,
                              {.heads = options_.num_heads,
                               .kv_heads = options_.num_kv_heads,
                               .source_mask = source.source_mask,
                               .dropout = {options_.dropout, this->training()},
                               .rope = rope_,
                               .first_query = first_query,
                               .keys_turned = rope_.has_value()},
                              out_proj_, pass);
}

template <class T>
typename BasicCrossAttention<T>::InputGradients BasicCrossAttention<T>::backward(const BasicTensor<T>& d_output) {
    const Remembered<T>& memory = recall(this->memory_);
    const BasicTensor<T> d_out = checked_gradient(d_output, memory, options_.d_out);
    const BasicTensor<T> d_context = out_proj_.backward(memory.context, d_out, *memory.runtime);
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
