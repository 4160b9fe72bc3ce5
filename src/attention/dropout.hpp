// Which weights dropout keeps: the same answer in forward and backward, on any machine, in any tiling.
#pragma once

#include <algorithm>

#include "attention/problem.hpp"

namespace qkv::detail {

/// factors (rows, kKeyTile) ← 1 / (1 − p) where the weight is kept, else 0, as past the tile's columns.
template <class A>
void dropout_factors(const kernels::Kernels<A>& kernels, const Problem& problem, const Tile& tile, A* factors) {
    const auto keep_scale = static_cast<A>(problem.keep_scale);
    const Sequence& sequence = *tile.sequence;
    if (problem.keep) {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            std::fill(factors + r * kKeyTile + tile.columns, factors + (r + 1) * kKeyTile, A(0));
            const std::byte* keep = problem.keep->at(sequence.batch, tile.head, sequence.query_start + tile.row + r,
                                                     sequence.key_start + tile.column);
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                factors[r * kKeyTile + c] = keep[c * problem.keep->strides[3]] != std::byte{0} ? keep_scale : A(0);
            }
        }
        return;
    }
    const std::int64_t id =
        problem.sequence_ids.empty() ? sequence.index : problem.sequence_ids[static_cast<std::size_t>(sequence.index)];
    // Counter: key / 4, query, head, sequence. Validation keeps all of them below 2³².
    const kernels::DropoutRows<A> draw{
        .first_key = problem.offsets.key + tile.column,
        .counter = {static_cast<std::uint32_t>(sequence.query_offset + tile.row),
                    static_cast<std::uint32_t>(problem.offsets.head + tile.head), static_cast<std::uint32_t>(id)},
        .seed = problem.dropout_seed,
        // 2³², below which all draws are, has no place in 32 bits.
        .drop_below = static_cast<std::uint32_t>(std::min<std::uint64_t>(problem.drop_below, 0xFFFFFFFFU)),
        .keep_scale = problem.drop_below > 0xFFFFFFFFU ? A(0) : keep_scale};
    kernels.draw_factors(factors, draw, tile.rows, tile.columns);
}

}  // namespace qkv::detail
