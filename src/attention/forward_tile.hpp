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

/// Takes the tile's scores into the running softmax of its rows: scratch.weights, with dropout, and what sums over
/// earlier keys shrink by.
template <class A>
void weigh_tile(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        const A shrink =
            take_scores(scratch.states[r], scratch.scores.scores + r * kKeyTile, scratch.weights + r * kKeyTile);
        if (shrink != A(1)) {
            A* context = scratch.context + r * problem.value_dim;
            for (std::int64_t d = 0; d < problem.value_dim; ++d) {
                context[d] *= shrink;
            }
        }
    }
    if (problem.dropout) {
        dropout_factors(problem, tile, scratch.factors);
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                scratch.weights[r * kKeyTile + c] *= scratch.factors[r * kKeyTile + c];
            }
        }
    }
}

/// context += weights · value over the tile's keys, whose values are in scratch.
template <class A>
void add_values(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch, bool finite) {
    const std::int64_t width = problem.value_dim;
    const Left<A> weights{scratch.weights, kKeyTile, 1};
    if (tile.full || finite) {
        multiply_add(scratch.context, weights, scratch.value, tile.rows, tile.columns, width);
    } else {
        multiply_add_unmasked(scratch.context, weights, scratch.scores.scores, scratch.value, tile.rows, tile.columns,
                              width);
    }
}

/// Takes in the sinks, divides by the row sums and writes context and lse.
template <class A>
void write_rows(const ForwardCall& call, const Sequence& sequence, std::int64_t head, std::int64_t row,
                std::int64_t rows, const ForwardScratch<A>& scratch) {
    const Problem& problem = call.problem;
    const std::int64_t width = problem.value_dim;
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t query = sequence.query_start + row + r;
        RowState<A>& state = scratch.states[r];
        const A lse_of_keys = state.lse();
        A shrink = A(1);
        if (problem.sinks) {
            shrink = take_sink(state, per_head_value<A>(*problem.sinks, 0, head));
        }
        const A sum = state.sum == A(0) ? A(1) : state.sum;
        A* context = scratch.context + r * width;
        for (std::int64_t d = 0; d < width; ++d) {
            // + 0 turns −0, which a product that underflowed may leave, into the 0 of a sum that skipped it.
            context[d] = context[d] * shrink / sum + A(0);
        }
        store(call.out.at(sequence.batch, head, query, 0), call.out.dtype, 1, context, width);
        if (call.extras.lse) {
            const A lse = call.extras.lse_counts_sinks ? state.lse() : lse_of_keys;
            store(call.extras.lse->at(sequence.batch, head, query, 0), call.extras.lse->dtype, 1, &lse, 1);
        }
    }
}

/// Writes extras.weights and extras.scores for rows [row, row + rows), whose final states (sinks counted) are in
/// scratch. The scores are computed again, so that nothing about the context depends on who asks.
template <class A>
void record_rows(const ForwardCall& call, const Sequence& sequence, std::int64_t head, std::int64_t row,
                 std::int64_t rows, const ForwardScratch<A>& scratch);

}  // namespace qkv::detail
