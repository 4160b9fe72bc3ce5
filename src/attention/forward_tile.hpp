// The arrays of one forward tile, and the steps that forward and the recording of weights share.
#pragma once

#include "attention/dropout.hpp"
#include "attention/forward.hpp"
#include "attention/score_tile.hpp"
#include "attention/state.hpp"

namespace qkv::detail {

template <class A>
struct ForwardScratch {
    ForwardScratch(const Problem& problem, Carver& carver)
        : query(carver.take<A>(kQueryTile * problem.head_dim)),
          key(carver.take<A>(kKeyTile * problem.head_dim)),
          key_transposed(carver.take<A>(kKeyTile * problem.head_dim)),
          value(carver.take<A>(kKeyTile * problem.value_dim)),
          context(carver.take<A>(kQueryTile * problem.value_dim)),
          weights(carver.take<A>(kQueryTile * kKeyTile)),
          factors(carver.take<A>(problem.dropout ? kQueryTile * kKeyTile : 0)),
          scores{carver.take<A>(kQueryTile * kKeyTile),
                 carver.take<A>(problem.mask.bias_view ? kQueryTile * kKeyTile : 0),
                 carver.take<std::uint8_t>(kQueryTile * kKeyTile)},
          states(carver.take<RowState<A>>(kQueryTile)) {}

    A* query;           // (rows, D)
    A* key;             // (columns, D)
    A* key_transposed;  // (D, kKeyTile)
    A* value;           // (columns, Dv)
    A* context;         // (rows, Dv), not yet divided by the row sums
    A* weights;         // (rows, kKeyTile), relative to the row's running maximum
    A* factors;         // (rows, kKeyTile), dropout's
    ScoreScratch<A> scores;
    RowState<A>* states;  // (rows)
};

/// scratch.scores ← query · keyᵀ over the tile's keys.
template <class A>
void multiply_query_key(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch) {
    load_keys(scratch.key, problem, *tile.sequence, tile.head / problem.group, tile.column, tile.columns);
    transpose(scratch.key_transposed, scratch.key, tile.columns, problem.head_dim);
    multiply_tile(scratch.scores.scores, scratch.query, scratch.key_transposed, tile.rows, problem.head_dim);
}

/// The tile's final scores; false when every one of them is masked.
template <class A>
[[nodiscard]] bool score_tile(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch) {
    if (!prepare_mask(problem, tile, scratch.scores)) {
        return false;
    }
    multiply_query_key(problem, tile, scratch);
    finish_scores(problem, tile, scratch.scores);
    return true;
}

/// Writes extras.weights and extras.scores for rows [row, row + rows), whose final states (sinks counted) are in
/// scratch. The scores are computed again, so that nothing about the context depends on who asks.
template <class A>
void record_rows(const ForwardCall& call, const Sequence& sequence, std::int64_t head, std::int64_t row,
                 std::int64_t rows, const ForwardScratch<A>& scratch);

}  // namespace qkv::detail
