// Where keys and values lie: the one way in which forward, backward and decode read them.
#pragma once

#include <algorithm>

#include "attention/problem.hpp"

namespace qkv::detail {

using kernels::Rows;

/// Tokens of one key/value head in a block [heads][tokens][width] of the sequence's table, no further than it goes.
/// A token that a ring has let go of reads as whatever took its place: memory that a mask leaves out.
[[nodiscard]] inline Rows block_rows(const KeyValueBlocks& blocks, const Sequence& sequence, std::int64_t kv_head,
                                     std::int64_t token, std::int64_t wanted, std::int64_t offset, std::int64_t width) {
    const auto slot = static_cast<std::size_t>(token / blocks.tokens) % sequence.blocks.size();
    const std::int64_t within = token % blocks.tokens;
    const std::int64_t row = kv_head * blocks.tokens + within;
    return {blocks.data + sequence.blocks[slot] * blocks.bytes + offset + row * width * size_of(blocks.dtype),
            blocks.dtype, width, std::min(wanted, blocks.tokens - within)};
}

/// Where keys [token, token + rows) of the sequence lie, 1 <= rows <= wanted: of a tensor all that are wanted, of a
/// cache as many as its block holds. Ask again for the rest.
[[nodiscard]] inline Rows key_rows(const Problem& problem, const Sequence& sequence, std::int64_t kv_head,
                                   std::int64_t token, std::int64_t wanted) {
    if (problem.blocks.data != nullptr) {
        return block_rows(problem.blocks, sequence, kv_head, token, wanted, 0, problem.head_dim);
    }
    const ConstTensorView& k = problem.k;
    return {k.at(sequence.batch, kv_head, sequence.key_start + token, 0), k.dtype, k.strides[2], wanted};
}

/// key_rows for values.
[[nodiscard]] inline Rows value_rows(const Problem& problem, const Sequence& sequence, std::int64_t kv_head,
                                     std::int64_t token, std::int64_t wanted) {
    if (problem.blocks.data != nullptr) {
        return block_rows(problem.blocks, sequence, kv_head, token, wanted, problem.blocks.values_at,
                          problem.value_dim);
    }
    const ConstTensorView& v = problem.v;
    return {v.at(sequence.batch, kv_head, sequence.key_start + token, 0), v.dtype, v.strides[2], wanted};
}

}  // namespace qkv::detail
