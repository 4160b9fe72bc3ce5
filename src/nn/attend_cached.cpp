#include "nn/attend_cached.hpp"

#include <algorithm>
#include <utility>

#include "core/check.hpp"
#include "qkv/attention.hpp"

namespace qkv::nn {

namespace {

void check_layout(const KvLayout& layout, std::int64_t kv_heads, std::int64_t head_dim) {
    if (layout.kv_heads != kv_heads || layout.head_dim != head_dim || layout.value_dim != head_dim) {
        fail(ErrorCode::shape_mismatch, "cache holds ", layout.kv_heads, " heads with keys of ", layout.head_dim,
             " and values of ", *layout.value_dim, "; expected ", kv_heads, " heads of ", head_dim);
    }
}

}  // namespace

template <class T>
void attend_cached(Remembered<T>& memory, AttendOptions options, std::int64_t context_length, KvCache& cache,
                   const CacheBatch& batch, const Pass<T>& pass) {
    BasicTrace<T>* const trace = pass.trace;
    memory.runtime = pass.runtime;
    memory.options = std::move(options);
    const std::int64_t heads = memory.options.heads;
    const std::int64_t kv_heads = memory.options.kv_heads;
    const auto queries = heads_of(memory.queries, heads);
    const auto keys = heads_of(memory.keys, kv_heads);
    const auto values = heads_of(memory.values, kv_heads);
    check_layout(cache.layout(), kv_heads, keys.size(3));
    const std::vector<std::int64_t> positions = cache.next_positions(batch, keys);
    check_context_length(positions.empty() ? 0 : *std::ranges::max_element(positions) + 1, context_length);

    record_projected(memory, trace);
    if (const std::optional<Rope>& rope = memory.options.rope) {
        cache.append(batch, keys, values, *rope);
        rope->apply(queries, queries, {.each = positions}, *memory.runtime);
        if (trace != nullptr) {
            rope->apply(keys, keys, {.each = positions}, *memory.runtime);
        }
        record_turned(memory, trace);
    } else {
        cache.append(batch, keys, values);
    }

    memory.context = BasicTensor<T>::unwritten(memory.queries.shape());
    AttentionExtras extras;
    BasicTensor<T> masked;
    BasicTensor<T> weights;
    if (trace != nullptr) {
        std::int64_t longest = 0;
        for (const SequenceId id : batch.sequences) {
            longest = std::max(longest, cache.size(id));
        }
        const Shape4 shape{queries.size(0), heads, queries.size(2), longest};
        masked = BasicTensor<T>(Shape(shape.begin(), shape.end()));
        weights = masked;
        extras.scores = view(masked.data(), shape);
        extras.scores_at = ScorePoint::masked;
        extras.weights = view(weights.data(), shape);
    }
    attention(queries, cache, batch, heads_of(memory.context, heads), {.mask = Mask::causal(Align::bottom_right)},
              extras, *memory.runtime);
    if (trace != nullptr) {
        for (auto& [name, tensor] : {std::pair{"masked", &masked}, std::pair{"weights", &weights}}) {
            Shape shape = memory.options.leading;
            shape.insert(shape.end(), tensor->shape().end() - 2, tensor->shape().end());
            trace->record(name, tensor->reshaped(std::move(shape)));
        }
    }
}

#define QKV_INSTANTIATE(T)                                                                                \
    template void attend_cached(Remembered<T>&, AttendOptions, std::int64_t, KvCache&, const CacheBatch&, \
                                const Pass<T>&);
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
