// Which weights dropout keeps: the same answer in forward and backward, on any machine, in any tiling.
#pragma once

#include "attention/problem.hpp"
#include "core/philox.hpp"

namespace qkv::detail {

/// factors (rows, kKeyTile) ← 1 / (1 − p) where the weight is kept, else 0, as past the tile's columns.
template <class A>
void dropout_factors(const Problem& problem, const Tile& tile, A* factors) {
    const auto keep_scale = static_cast<A>(problem.keep_scale);
    const Sequence& sequence = *tile.sequence;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        std::fill(factors + r * kKeyTile + tile.columns, factors + (r + 1) * kKeyTile, A(0));
    }
    if (problem.keep) {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
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
    // Counter: key / 4, query, head, sequence; the word is key mod 4. Validation keeps all of them below 2³².
    const std::int64_t first = problem.offsets.key + tile.column;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        for (std::int64_t block = first / 4; block * 4 < first + tile.columns; ++block) {
            const PhiloxWords words = philox4x32_10(
                {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(sequence.query_offset + tile.row + r),
                 static_cast<std::uint32_t>(problem.offsets.head + tile.head), static_cast<std::uint32_t>(id)},
                problem.dropout_seed);
            for (std::int64_t word = 0; word < 4; ++word) {
                const std::int64_t c = block * 4 + word - first;
                if (c >= 0 && c < tile.columns) {
                    const bool kept = words[static_cast<std::size_t>(word)] >= problem.drop_below;
                    factors[r * kKeyTile + c] = kept ? keep_scale : A(0);
                }
            }
        }
    }
}

}  // namespace qkv::detail
