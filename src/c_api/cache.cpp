#include <algorithm>
#include <memory>

#include "c_api/attention_options.hpp"
#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"
#include "qkv/kv_cache.hpp"

namespace qkv::c_api {

namespace {

KvLayout to_layout(const qkv_cache_layout* layout) {
    const qkv_cache_layout given = read_struct(&required(layout, "layout"), "layout");
    check_device(given.device, given.device_id, "layout");
    if (given.reserved != 0) {
        fail(ErrorCode::invalid_argument, "layout.reserved is ", given.reserved, "; expected 0");
    }
    KvLayout whole;
    whole.kv_heads = or_default(given.kv_heads, whole.kv_heads);
    whole.head_dim = given.head_dim;
    if (given.value_dim != 0) {
        whole.value_dim = given.value_dim;
    }
    whole.dtype = checked_enum(given.dtype, DType::boolean, "layout.dtype");
    return whole;
}

ContiguousOptions to_options(const qkv_cache_contiguous& given) {
    ContiguousOptions options;
    options.capacity = given.capacity;
    options.sequences = or_default(given.sequences, options.sequences);
    return options;
}

WindowedOptions to_options(const qkv_cache_windowed& given) {
    WindowedOptions options;
    options.window = given.window;
    options.max_append = or_default(given.max_append, options.max_append);
    options.sequences = or_default(given.sequences, options.sequences);
    options.block_tokens = or_default(given.block_tokens, options.block_tokens);
    return options;
}

PagedOptions to_options(const qkv_cache_paged& given) {
    PagedOptions options;
    options.blocks = given.blocks;
    options.block_tokens = or_default(given.block_tokens, options.block_tokens);
    return options;
}

/// make(layout, options) becomes *cache.
template <class Given, class Make>
qkv_status create_cache(const qkv_cache_layout* layout, const Given* options, qkv_cache** cache,
                        const Make& make) noexcept {
    return guarded([&] {
        qkv_cache*& created = required(cache, "cache");
        auto made = std::make_unique<qkv_cache>(
            make(to_layout(layout), to_options(read_struct(&required(options, "options"), "options"))));
        created = made.release();
    });
}

CacheBatch to_batch(const qkv_cache_batch* batch) {
    const qkv_cache_batch given = read_struct(&required(batch, "batch"), "batch");
    CacheBatch whole;
    whole.sequences = to_span(given.sequences, given.sequences_count, "batch.sequences");
    if (given.cumulative_tokens != nullptr) {
        whole.cumulative_tokens = {given.cumulative_tokens, whole.sequences.size() + 1};
    }
    return whole;
}

KvCache& cache_of(qkv_cache* cache) { return required(cache, "cache").cache; }
const KvCache& cache_of(const qkv_cache* cache) { return required(cache, "cache").cache; }

}  // namespace

}  // namespace qkv::c_api

using namespace qkv::c_api;
using qkv::KvCache;

extern "C" {

qkv_status qkv_cache_create_contiguous(const qkv_cache_layout* layout, const qkv_cache_contiguous* options,
                                       qkv_cache** cache) {
    return create_cache(layout, options, cache, &KvCache::contiguous);
}

qkv_status qkv_cache_create_windowed(const qkv_cache_layout* layout, const qkv_cache_windowed* options,
                                     qkv_cache** cache) {
    return create_cache(layout, options, cache, &KvCache::windowed);
}

qkv_status qkv_cache_create_paged(const qkv_cache_layout* layout, const qkv_cache_paged* options, qkv_cache** cache) {
    return create_cache(layout, options, cache, &KvCache::paged);
}

void qkv_cache_destroy(qkv_cache* cache) { delete cache; }

qkv_status qkv_cache_add(qkv_cache* cache, int64_t* sequence) {
    return guarded([&] {
        int64_t& added = required(sequence, "sequence");
        added = cache_of(cache).add();
    });
}

qkv_status qkv_cache_fork(qkv_cache* cache, int64_t sequence, int64_t tokens, int64_t* fork) {
    return guarded([&] {
        int64_t& added = required(fork, "fork");
        added = cache_of(cache).fork(sequence, tokens == QKV_UNLIMITED ? std::nullopt : std::optional(tokens));
    });
}

qkv_status qkv_cache_remove(qkv_cache* cache, int64_t sequence) {
    return guarded([&] { cache_of(cache).remove(sequence); });
}

qkv_status qkv_cache_append(qkv_cache* cache, const qkv_cache_batch* batch, const qkv_tensor* k, const qkv_tensor* v,
                            const qkv_rope* rope) {
    return guarded([&] {
        KvCache& whole = cache_of(cache);
        if (rope == nullptr) {
            whole.append(to_batch(batch), to_view(k, "k"), to_view(v, "v"));
        } else {
            whole.append(to_batch(batch), to_view(k, "k"), to_view(v, "v"), rope->rope);
        }
    });
}

qkv_status qkv_cache_next_positions(const qkv_cache* cache, const qkv_cache_batch* batch, const qkv_tensor* tokens,
                                    int64_t* positions, int64_t count) {
    return guarded([&] {
        const KvCache& whole = cache_of(cache);
        const qkv::TensorView shaped = to_view(tokens, "tokens");
        // Before as many positions are made.
        (void)to_span(positions, count, "positions");
        if (shaped.shape[0] < 0 || shaped.shape[2] < 0 ||
            qkv::checked_multiply(shaped.shape[0], shaped.shape[2], "tokens") != count) {
            qkv::fail(qkv::ErrorCode::shape_mismatch, "count is ", count, " for tokens of shape ",
                      qkv::to_string(shaped), "; expected B * T");
        }
        std::ranges::copy(whole.next_positions(to_batch(batch), shaped), positions);
    });
}

qkv_status qkv_cache_truncate(qkv_cache* cache, int64_t sequence, int64_t tokens) {
    return guarded([&] { cache_of(cache).truncate(sequence, tokens); });
}

qkv_status qkv_cache_reset(qkv_cache* cache, int64_t sequence) {
    return guarded([&] { cache_of(cache).reset(sequence); });
}

qkv_status qkv_cache_size(const qkv_cache* cache, int64_t sequence, int64_t* tokens) {
    return guarded([&] {
        int64_t& size = required(tokens, "tokens");
        size = cache_of(cache).size(sequence);
    });
}

qkv_status qkv_cache_first(const qkv_cache* cache, int64_t sequence, int64_t* position) {
    return guarded([&] {
        int64_t& first = required(position, "position");
        first = cache_of(cache).first(sequence);
    });
}

qkv_status qkv_cache_get_info(const qkv_cache* cache, qkv_cache_info* info) {
    return guarded([&] {
        const KvCache& whole = cache_of(cache);
        write_struct(info,
                     {.struct_size = 0,
                      .sequences = whole.sequences(),
                      .blocks = whole.blocks(),
                      .free_blocks = whole.free_blocks(),
                      .shared_blocks = whole.shared_blocks(),
                      .block_tokens = whole.block_tokens(),
                      .bytes = whole.bytes()},
                     "info");
    });
}

qkv_status qkv_cache_block_table(const qkv_cache* cache, int64_t sequence, int64_t* blocks, int64_t capacity,
                                 int64_t* count) {
    return guarded([&] {
        int64_t& length = required(count, "count");
        const std::span room = to_span(blocks, capacity, "blocks");
        const std::vector<std::int64_t> table = cache_of(cache).block_table(sequence);
        if (blocks != nullptr && room.size() < table.size()) {
            qkv::fail(qkv::ErrorCode::out_of_range, "capacity is ", capacity, "; expected at least ", table.size(),
                      ", the sequence's blocks");
        }
        if (blocks != nullptr) {
            std::ranges::copy(table, blocks);
        }
        length = static_cast<int64_t>(table.size());
    });
}

qkv_status qkv_cache_get_block(const qkv_cache* cache, int64_t sequence, int64_t index, qkv_cache_block* block) {
    return guarded([&] {
        const qkv::KvBlock held = cache_of(cache).block(sequence, index);
        write_struct(block,
                     {.struct_size = 0,
                      .keys = held.keys,
                      .values = held.values,
                      .first = held.first,
                      .tokens = held.tokens,
                      .dtype = static_cast<qkv_dtype>(held.dtype),
                      .reserved = 0},
                     "block");
    });
}

qkv_status qkv_cache_attention(const qkv_tensor* q, const qkv_cache* cache, const qkv_cache_batch* batch,
                               const qkv_tensor* out, const qkv_attention_options* options,
                               const qkv_attention_extras* extras, const qkv_runtime* runtime) {
    return guarded([&] {
        qkv::attention(to_view(q, "q"), cache_of(cache), to_batch(batch), to_view(out, "out"), Options(options).get(),
                       to_extras(extras), runtime_of(runtime));
    });
}

qkv_status qkv_cache_attention_workspace_size(const qkv_tensor* q, const qkv_cache* cache, const qkv_cache_batch* batch,
                                              const qkv_tensor* out, const qkv_attention_options* options,
                                              const qkv_attention_extras* extras, const qkv_runtime* runtime,
                                              size_t* workspace_size) {
    return guarded([&] {
        size_t& size = required(workspace_size, "workspace_size");
        size = qkv::attention_workspace_size(to_view(q, "q"), cache_of(cache), to_batch(batch), to_view(out, "out"),
                                             Options(options).get(), without_workspace(to_extras(extras)),
                                             runtime_of(runtime));
    });
}

}  // extern "C"
