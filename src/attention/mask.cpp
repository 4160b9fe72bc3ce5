#include "qkv/mask.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace qkv {

namespace {

std::int64_t checked_distance(std::int64_t distance, std::int64_t low, const char* what) {
    if (distance < low || distance >= Mask::unbounded) {
        fail(ErrorCode::invalid_argument, "mask: ", what, " is ", distance, "; expected ", low, " to ",
             Mask::unbounded - 1);
    }
    return distance;
}

Mask::Band intersect(const Mask::Band& a, const Mask::Band& b) {
    return {std::max(a.low, b.low), std::min(a.high, b.high)};
}

/// Whichever of the two is there.
template <class T>
std::optional<T> either(const std::optional<T>& a, const std::optional<T>& b, const char* what) {
    if (a && b) {
        fail(ErrorCode::invalid_argument, "mask: two of ", what, " in one mask; expected at most one");
    }
    return a ? a : b;
}

}  // namespace

Mask Mask::causal(Align align) { return window(std::nullopt, 0, align); }

Mask Mask::causal(std::int64_t offset) {
    Mask mask;
    mask.top_left.high = checked_distance(offset, -unbounded + 1, "causal offset");
    return mask;
}

Mask Mask::window(std::optional<std::int64_t> left, std::optional<std::int64_t> right, Align align) {
    Band band;
    if (left) {
        band.low = -checked_distance(*left, 0, "window left");
    }
    if (right) {
        band.high = checked_distance(*right, 0, "window right");
    }
    Mask mask;
    (align == Align::top_left ? mask.top_left : mask.bottom_right) = band;
    return mask;
}

Mask Mask::allowed(ConstTensorView allowed) {
    Mask mask;
    mask.allowed_view = allowed;
    return mask;
}

Mask Mask::bias(ConstTensorView bias) {
    Mask mask;
    mask.bias_view = bias;
    return mask;
}

Mask Mask::alibi(ConstTensorView slopes, Align align) {
    Mask mask;
    mask.alibi_slopes = slopes;
    mask.alibi_align = align;
    return mask;
}

Mask Mask::key_begin(std::span<const std::int64_t> begin) {
    Mask mask;
    mask.key_begins = begin;
    return mask;
}

Mask Mask::key_end(std::span<const std::int64_t> end) {
    Mask mask;
    mask.key_ends = end;
    return mask;
}

Mask Mask::packed(std::span<const std::int64_t> cumulative_queries, std::span<const std::int64_t> cumulative_keys) {
    Mask mask;
    mask.packed_queries = cumulative_queries;
    mask.packed_keys = cumulative_keys;
    return mask;
}

Mask Mask::blocks(const BlockList& blocks) {
    Mask mask;
    mask.block_list = blocks;
    return mask;
}

Mask operator&(const Mask& a, const Mask& b) {
    Mask both;
    both.top_left = intersect(a.top_left, b.top_left);
    both.bottom_right = intersect(a.bottom_right, b.bottom_right);
    both.allowed_view = either(a.allowed_view, b.allowed_view, "allowed");
    both.bias_view = either(a.bias_view, b.bias_view, "bias");
    both.alibi_slopes = either(a.alibi_slopes, b.alibi_slopes, "alibi");
    both.alibi_align = a.alibi_slopes ? a.alibi_align : b.alibi_align;
    both.key_begins = either(a.key_begins, b.key_begins, "key_begin");
    both.key_ends = either(a.key_ends, b.key_ends, "key_end");
    both.packed_queries = either(a.packed_queries, b.packed_queries, "packed");
    both.packed_keys = either(a.packed_keys, b.packed_keys, "packed");
    both.block_list = either(a.block_list, b.block_list, "blocks");
    return both;
}

}  // namespace qkv
