// The arrays of forward's work, and the steps that forward and the recording of weights share.
#pragma once

#include "attention/dropout.hpp"
#include "attention/forward.hpp"
#include "attention/score_tile.hpp"
#include "attention/state.hpp"

namespace qkv::detail {

/// An item of work: up to `tokens` queries of up to `heads` heads that share keys. They are cut into row tiles, and
/// every tile of keys, once packed, serves all of them.
struct ForwardCut {
    std::int64_t tokens = kQueryTile;
    std::int64_t heads = 1;

    [[nodiscard]] std::int64_t row_tiles() const { return tokens / kQueryTile * heads; }
};

template <class A>
struct ForwardSetup {
    const ForwardCall& call;
    const Kernels<A>& kernels;
    ForwardCut cut;
};

/// A tile of queries of one head within an item, with what it has gathered so far.
template <class A>
struct RowTile {
    std::int64_t head;
    std::int64_t row;
    std::int64_t rows;
    KeyRange needed;
    A* query;      // (rows, padded D), scaled
    A* context;    // (rows, padded Dv), not yet divided by the row sums
    A* reference;  // (rows)
    A* sums;       // (rows, kLanes)

    [[nodiscard]] RowState<A> state(std::int64_t r) const { return {reference[r], total(sums + r * kernels::kLanes)}; }
};

/// A tile of keys and their values, packed.
template <class A>
struct KeyTile {
    std::int64_t column = 0;
    std::int64_t columns = 0;
    bool packed = false;
    bool finite_values = false;
};

template <class A>
struct ForwardScratch {
    ForwardScratch(const ForwardSetup<A>& setup, Carver& carver)
        : key_width(kernels::padded(setup.call.problem.head_dim)),
          value_width(kernels::padded(setup.call.problem.value_dim)),
          tiles(carver.take<RowTile<A>>(setup.cut.row_tiles())),
          key(carver.take<A>(kKeyTile * key_width)),
          key_transposed(carver.take<A>(kKeyTile * key_width)),
          value(carver.take<A>(kKeyTile * value_width)),
          cleared(carver.take<A>(kKeyTile * value_width)),
          weights(carver.take<A>(kQueryTile * kKeyTile)),
          factors(carver.take<A>(setup.call.problem.dropout ? kQueryTile * kKeyTile : 0)),
          scores{carver.take<A>(kQueryTile * kKeyTile),
                 carver.take<A>(setup.call.problem.mask.bias_view ? kQueryTile * kKeyTile : 0),
                 carver.take<std::uint8_t>(kQueryTile * kKeyTile)},
          query(carver.take<A>(setup.cut.row_tiles() * kQueryTile * key_width)),
          context(carver.take<A>(setup.cut.row_tiles() * kQueryTile * value_width)),
          reference(carver.take<A>(setup.cut.row_tiles() * kQueryTile)),
          sums(carver.take<A>(setup.cut.row_tiles() * kQueryTile * kernels::kLanes)) {}

    std::int64_t key_width;
    std::int64_t value_width;
    RowTile<A>* tiles;
    A* key;             // (columns, padded D)
    A* key_transposed;  // (padded D, kKeyTile)
    A* value;           // (kKeyTile, padded Dv), 0 past the columns
    A* cleared;         // a copy of value for one row
    A* weights;         // (rows, kKeyTile), relative to the row's reference
    A* factors;         // (rows, kKeyTile), dropout's
    ScoreScratch<A> scores;
    // Of all row tiles.
    A* query;
    A* context;
    A* reference;
    A* sums;
};

template <class A>
void pack_keys(const ForwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head, const KeyTile<A>& tile,
               const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    setup.kernels.load(scratch.key, scratch.key_width,
                       rows_of(problem.k, sequence.batch, kv_head, sequence.key_start + tile.column, tile.columns),
                       problem.head_dim, A(1));
    setup.kernels.transpose(scratch.key_transposed, scratch.key, scratch.key_width, tile.columns, problem.head_dim);
}

/// scratch.scores ← scale · query · keyᵀ over the packed keys.
template <class A>
void multiply_query_key(const ForwardSetup<A>& setup, const RowTile<A>& rows, const ForwardScratch<A>& scratch) {
    setup.kernels.multiply(scratch.scores.scores, kKeyTile, {rows.query, scratch.key_width, 1}, scratch.key_transposed,
                           kKeyTile, rows.rows, setup.call.problem.head_dim, kKeyTile);
}

/// Writes extras.weights and extras.scores for the rows of a tile whose states are final (sinks not counted). The
/// scores are computed again, so that nothing about the context depends on who asks.
template <class A>
void record_rows(const ForwardSetup<A>& setup, const Sequence& sequence, const RowTile<A>& rows,
                 const ForwardScratch<A>& scratch);

/// The sink takes part in the softmax as one more score without a value: the state with it.
template <class A>
[[nodiscard]] RowState<A> with_sink(const Kernels<A>& kernels, const RowState<A>& state, A sink) {
    if (sink == kMinusInfinity<A>) {
        return state;
    }
    const A reference = sink > state.reference ? sink : state.reference;
    return {reference, state.sum * kernels.exp(state.reference - reference) + kernels.exp(sink - reference)};
}

/// The state with the sink of its head, where there are sinks.
template <class A>
[[nodiscard]] RowState<A> with_sinks(const ForwardSetup<A>& setup, std::int64_t head, const RowState<A>& state) {
    const auto& sinks = setup.call.problem.sinks;
    return sinks ? with_sink(setup.kernels, state, per_head_value<A>(*sinks, 0, head)) : state;
}

}  // namespace qkv::detail
