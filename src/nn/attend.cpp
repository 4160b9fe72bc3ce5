#include "nn/attend.hpp"

#include <algorithm>
#include <utility>

#include "nn/dropout.hpp"
#include "qkv/attention.hpp"

namespace qkv::nn {

namespace {

/// Bytes as the booleans that they are.
ConstTensorView booleans(const std::uint8_t* bytes, const Shape4& shape) {
    return {bytes, DType::boolean, shape, contiguous_strides(shape)};
}

template <class T>
AttentionOptions function_options(const Remembered<T>& memory) {
    const std::int64_t batch = memory.queries.size(0);
    const std::int64_t tokens = memory.queries.size(1);
    const std::int64_t source_tokens = memory.keys.size(1);
    AttentionOptions options;
    if (memory.options.causal) {
        options.mask = Mask::causal(Align::top_left);
    }
    if (!memory.allowed.empty()) {
        options.mask = options.mask & Mask::allowed(booleans(memory.allowed.data(), {batch, 1, 1, source_tokens}));
    }
    if (!memory.keep.empty()) {
        options.dropout.p = memory.options.dropout.probability;
        options.dropout.keep = booleans(memory.keep.data(), {batch, memory.options.heads, tokens, source_tokens});
    }
    return options;
}

/// Each key/value head as often as query heads share it: [batch · kv_heads, …] → [batch · heads, …].
template <class T>
BasicTensor<T> repeated(const BasicTensor<T>& x, std::int64_t times) {
    if (times == 1) {
        return x;
    }
    BasicTensor<T> all = BasicTensor<T>::unwritten({x.size(0) * times, x.size(1), x.size(2)});
    const std::int64_t count = x.size(1) * x.size(2);
    for (std::int64_t n = 0; n < all.size(0); ++n) {
        std::copy_n(x.data() + n / times * count, count, all.data() + n * count);
    }
    return all;
}

/// Records a projected sequence head by head.
template <class T>
void record_heads(const char* name, const BasicTensor<T>& x, const AttendOptions& options, std::int64_t heads,
                  BasicTrace<T>& trace) {
    const BasicTensor<T> split = split_heads(x, heads);
    Shape shape = options.leading;
    if (heads != options.heads) {
        shape.back() = heads;
    }
    shape.insert(shape.end(), split.shape().begin() + 1, split.shape().end());
    trace.record(name, split.reshaped(std::move(shape)));
}

template <class T>
void record_attention(const Remembered<T>& memory, BasicTrace<T>& trace) {
    const AttendOptions& options = memory.options;
    const BasicTensor<T> queries = split_heads(memory.queries, options.heads);
    const BasicTensor<T> keys = split_heads(memory.keys, options.kv_heads);
    const std::int64_t group = options.heads / options.kv_heads;
    const StepMask mask{.causal = options.causal, .keys = options.source_mask, .heads_per_batch = options.heads};
    const AttentionSteps<T> steps =
        attention_steps(queries, repeated(keys, group), mask, memory.keep, options.dropout.probability);
    record_steps(steps, options.leading, trace);
}

/// Turns queries and keys where there is a rope, and records them before and after.
template <class T>
void turn(Remembered<T>& memory, BasicTrace<T>* trace) {
    const AttendOptions& options = memory.options;
    record_projected(memory, trace);
    if (!options.rope) {
        return;
    }
    const auto queries = heads_of(memory.queries, options.heads);
    options.rope->apply(queries, queries, {.start = options.first_query}, *memory.runtime);
    if (!options.keys_turned) {
        const auto keys = heads_of(memory.keys, options.kv_heads);
        options.rope->apply(keys, keys, {}, *memory.runtime);
    }
    record_turned(memory, trace);
}

}  // namespace

template <class T>
void record_projected(const Remembered<T>& memory, BasicTrace<T>* trace) {
    if (trace == nullptr) {
        return;
    }
    const AttendOptions& options = memory.options;
    record_heads("queries", memory.queries, options, options.heads, *trace);
    if (!options.keys_turned) {
        record_heads("keys", memory.keys, options, options.kv_heads, *trace);
    }
    record_heads("values", memory.values, options, options.kv_heads, *trace);
}

template <class T>
void record_turned(const Remembered<T>& memory, BasicTrace<T>* trace) {
    if (trace != nullptr) {
        record_heads("rotated_queries", memory.queries, memory.options, memory.options.heads, *trace);
        record_heads("rotated_keys", memory.keys, memory.options, memory.options.kv_heads, *trace);
    }
}

template <class T>
void attend(Remembered<T>& memory, AttendOptions options, const Pass<T>& pass) {
    memory.options = std::move(options);
    memory.runtime = pass.runtime;
    // In the memory order of the weights, as PyTorch draws: [batch, heads, tokens, source tokens].
    memory.keep =
        drawn_keep(memory.queries.size(0) * memory.options.heads * memory.queries.size(1) * memory.keys.size(1),
                   memory.options.dropout, pass.generator);
    memory.allowed.assign(memory.options.source_mask.begin(), memory.options.source_mask.end());
    const std::int64_t heads = memory.options.heads;
    const std::int64_t kv_heads = memory.options.kv_heads;
    turn(memory, pass.trace);
    const std::int64_t batch = memory.queries.size(0);
    const std::int64_t tokens = memory.queries.size(1);
    memory.context = BasicTensor<T>::unwritten({batch, tokens, memory.values.size(2) / kv_heads * heads});
    memory.lse = BasicTensor<T>::unwritten({batch, heads, tokens, 1});
    attention(heads_of(std::as_const(memory.queries), heads), heads_of(std::as_const(memory.keys), kv_heads),
              heads_of(std::as_const(memory.values), kv_heads), heads_of(memory.context, heads),
              function_options(memory), {.lse = per_row(memory.lse.data(), batch, heads, tokens)}, *memory.runtime);
    if (pass.trace != nullptr) {
        record_attention(memory, *pass.trace);
    }
}

template <class T>
ProjectionGradients<T> attend_backward(const Remembered<T>& memory, const BasicTensor<T>& d_context) {
    const std::int64_t heads = memory.options.heads;
    const std::int64_t kv_heads = memory.options.kv_heads;
    ProjectionGradients<T> gradients{BasicTensor<T>::unwritten(memory.queries.shape()),
                                     BasicTensor<T>::unwritten(memory.keys.shape()),
                                     BasicTensor<T>::unwritten(memory.values.shape())};
    const std::int64_t batch = memory.queries.size(0);
    const std::int64_t tokens = memory.queries.size(1);
    attention_backward(
        heads_of(memory.queries, heads), heads_of(memory.keys, kv_heads), heads_of(memory.values, kv_heads),
        heads_of(d_context, heads),
        {.lse = per_row(memory.lse.data(), batch, heads, tokens), .out = heads_of(memory.context, heads)},
        {.dq = heads_of(gradients.queries, heads),
         .dk = heads_of(gradients.keys, kv_heads),
         .dv = heads_of(gradients.values, kv_heads)},
        function_options(memory), *memory.runtime);
    if (const std::optional<Rope>& rope = memory.options.rope) {
        const auto d_queries = heads_of(gradients.queries, heads);
        const auto d_keys = heads_of(gradients.keys, kv_heads);
        rope->apply_backward(d_queries, d_queries, {}, *memory.runtime);
        rope->apply_backward(d_keys, d_keys, {}, *memory.runtime);
    }
    return gradients;
}

template <class T>
void check_gradient(const BasicTensor<T>& d_output, const Remembered<T>& memory, std::int64_t width) {
    const std::int64_t batch = memory.queries.size(0);
    const std::int64_t tokens = memory.queries.size(1);
    check_gradient(d_output, memory.batched ? Shape{batch, tokens, width} : Shape{tokens, width});
}

template <class T>
BasicTensor<T> checked_gradient(const BasicTensor<T>& d_output, const Remembered<T>& memory, std::int64_t width) {
    check_gradient(d_output, memory, width);
    return d_output.reshaped({memory.queries.size(0), memory.queries.size(1), width});
}

#define QKV_INSTANTIATE(T)                                                                        \
    template void record_projected(const Remembered<T>&, BasicTrace<T>*);                         \
    template void record_turned(const Remembered<T>&, BasicTrace<T>*);                            \
    template void attend(Remembered<T>&, AttendOptions, const Pass<T>&);                          \
    template ProjectionGradients<T> attend_backward(const Remembered<T>&, const BasicTensor<T>&); \
    template void check_gradient(const BasicTensor<T>&, const Remembered<T>&, std::int64_t);      \
    template BasicTensor<T> checked_gradient(const BasicTensor<T>&, const Remembered<T>&, std::int64_t);
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
