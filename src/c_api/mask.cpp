#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"

namespace qkv::c_api {

namespace {

Align to_align(qkv_align align) { return checked_enum(align, Align::bottom_right, "align"); }

std::optional<std::int64_t> to_limit(std::int64_t distance) {
    return distance == QKV_UNLIMITED ? std::nullopt : std::optional(distance);
}

BlockList to_blocks(const qkv_block_list* blocks) {
    const qkv_block_list given = read_struct(&required(blocks, "blocks"), "blocks");
    BlockList list;
    list.query_block = given.query_block;
    list.key_block = given.key_block;
    list.sequences = or_default<std::int64_t>(given.sequences, 1);
    list.heads = or_default<std::int64_t>(given.heads, 1);
    list.starts = to_span(given.starts, given.starts_count, "blocks.starts");
    list.key_blocks = to_span(given.key_blocks, given.key_blocks_count, "blocks.key_blocks");
    return list;
}

/// mask ← mask & make(), or as it was.
template <class Make>
qkv_status add(qkv_mask* mask, const Make& make) noexcept {
    return guarded([&] {
        Mask& whole = required(mask, "mask").mask;
        whole = whole & make();
    });
}

}  // namespace

}  // namespace qkv::c_api

using namespace qkv::c_api;
using qkv::Mask;

extern "C" {

qkv_status qkv_mask_create(qkv_mask** mask) {
    return create(mask, "mask", [] { return new qkv_mask; });
}

void qkv_mask_destroy(qkv_mask* mask) { delete mask; }

qkv_status qkv_mask_add_causal(qkv_mask* mask, qkv_align align) {
    return add(mask, [&] { return Mask::causal(to_align(align)); });
}

qkv_status qkv_mask_add_causal_offset(qkv_mask* mask, int64_t offset) {
    return add(mask, [&] { return Mask::causal(offset); });
}

qkv_status qkv_mask_add_window(qkv_mask* mask, int64_t left, int64_t right, qkv_align align) {
    return add(mask, [&] { return Mask::window(to_limit(left), to_limit(right), to_align(align)); });
}

qkv_status qkv_mask_add_allowed(qkv_mask* mask, const qkv_tensor* allowed) {
    return add(mask, [&] { return Mask::allowed(to_view(allowed, "allowed")); });
}

qkv_status qkv_mask_add_bias(qkv_mask* mask, const qkv_tensor* bias) {
    return add(mask, [&] { return Mask::bias(to_view(bias, "bias")); });
}

qkv_status qkv_mask_add_alibi(qkv_mask* mask, const qkv_tensor* slopes, qkv_align align) {
    return add(mask, [&] { return Mask::alibi(to_view(slopes, "slopes"), to_align(align)); });
}

qkv_status qkv_mask_add_key_begin(qkv_mask* mask, const int64_t* begin, int64_t count) {
    return add(mask, [&] { return Mask::key_begin(to_span(begin, count, "begin")); });
}

qkv_status qkv_mask_add_key_end(qkv_mask* mask, const int64_t* end, int64_t count) {
    return add(mask, [&] { return Mask::key_end(to_span(end, count, "end")); });
}

qkv_status qkv_mask_add_packed(qkv_mask* mask, const int64_t* cumulative_queries, const int64_t* cumulative_keys,
                               int64_t sequences) {
    return add(mask, [&] {
        if (sequences < 0 || sequences == INT64_MAX) {
            qkv::fail(qkv::ErrorCode::invalid_argument, "sequences is ", sequences, "; expected 0 or more");
        }
        return Mask::packed(to_span(cumulative_queries, sequences + 1, "cumulative_queries"),
                            to_span(cumulative_keys, sequences + 1, "cumulative_keys"));
    });
}

qkv_status qkv_mask_add_blocks(qkv_mask* mask, const qkv_block_list* blocks) {
    return add(mask, [&] { return Mask::blocks(to_blocks(blocks)); });
}

}  // extern "C"
