// What a finished tile of rows gives: context and lse; and weights and scores for those who ask, by a second walk over
// the row's keys.
#include "attention/forward_tile.hpp"

namespace qkv::detail {

namespace {

/// Rows of a [B, Hq, Tq, Tk] view that is to be shown something.
template <class A>
struct Recorder {
    const Sequence& sequence;
    std::int64_t head;
    std::int64_t row;
    std::int64_t rows;

    void put(const TensorView& view, std::int64_t r, std::int64_t column, const A* values, std::int64_t count) const {
        store(view.at(sequence.batch, head, sequence.query_start + row + r, column), view.dtype, view.strides[3],
              values, count);
    }
    /// The whole rows, keys of other sequences included.
    void fill(const TensorView& view, A value) const {
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t column = 0; column < view.size(3); ++column) {
                put(view, r, column, &value, 1);
            }
        }
    }
    void put_tile(const TensorView& view, const Tile& tile, const A* values) const {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            put(view, r, sequence.key_start + tile.column, values + r * kKeyTile, tile.columns);
        }
    }
};

/// The scores are computed again, so that nothing about the context depends on who asks.
template <class A>
void record_rows(const ForwardSetup<A>& setup, const Sequence& sequence, const RowTile<A>& rows,
                 const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const AttentionExtras& extras = setup.call.extras;
    const Kernels<A>& kernels = setup.kernels;
    const Recorder<A> recorder{sequence, rows.head, rows.row, rows.rows};
    const std::int64_t kv_head = rows.head / problem.group;
    const auto score = [&](std::int64_t column, std::int64_t columns) {
        KeyTile<A> keys{column, columns};
        pack_keys(setup, sequence, kv_head, keys, scratch);
        multiply_query_key(setup, rows, keys, scratch);
        if (const A scale = setup.softmax_scale * setup.product_scale; scale != A(1)) {
            kernels.scale(scratch.scores.scores, rows.rows, scale);
        }
    };
    const bool masked_scores = extras.scores && extras.scores_at == ScorePoint::masked;
    const bool weights_as_scores = extras.scores && extras.scores_at == ScorePoint::weights;

    if (extras.weights) {
        recorder.fill(*extras.weights, A(0));
    }
    if (extras.scores) {
        recorder.fill(*extras.scores, masked_scores ? kMinusInfinity<A> : A(0));
    }
    if (extras.weights || masked_scores || weights_as_scores) {
        RowState<A> states[kQueryTile];
        A references[kQueryTile];
        for (std::int64_t r = 0; r < rows.rows; ++r) {
            states[r] = with_sinks(setup, rows.head, rows.state(r));
            references[r] = states[r].reference;
        }
        for_each_tile(problem, sequence, rows.head, rows.row, rows.rows, [&](Tile tile) {
            if (!prepare_mask(problem, kernels, tile, scratch.scores)) {
                return;
            }
            score(tile.column, tile.columns);
            finish_scores(problem, kernels, tile, scratch.scores, A(1));
            if (masked_scores) {
                recorder.put_tile(*extras.scores, tile, scratch.scores.scores);
            }
            kernels.weigh(scratch.weights, scratch.scores.scores, references, rows.rows);
            for (std::int64_t r = 0; r < tile.rows; ++r) {
                const A sum = states[r].sum == A(0) ? A(1) : states[r].sum;
                for (std::int64_t c = 0; c < kKeyTile; ++c) {
                    scratch.weights[r * kKeyTile + c] /= sum;
                }
            }
            if (extras.weights) {
                recorder.put_tile(*extras.weights, tile, scratch.weights);
            }
            if (weights_as_scores) {
                recorder.put_tile(*extras.scores, tile, scratch.weights);
            }
        });
    }
    if (extras.scores && (extras.scores_at == ScorePoint::scaled || extras.scores_at == ScorePoint::capped)) {
        for (std::int64_t column = 0; column < sequence.keys; column += kKeyTile) {
            const std::int64_t columns = std::min(kKeyTile, sequence.keys - column);
            score(column, columns);
            if (extras.scores_at == ScorePoint::capped) {
                cap_scores(problem, kernels, scratch.scores.scores, rows.rows);
            }
            recorder.put_tile(*extras.scores, {&sequence, rows.head, rows.row, rows.rows, column, columns, true},
                              scratch.scores.scores);
        }
    }
}

}  // namespace

template <class A>
void write_rows(const ForwardSetup<A>& setup, const Sequence& sequence, const RowTile<A>& rows,
                const ForwardScratch<A>& scratch) {
    const ForwardCall& call = setup.call;
    const std::int64_t query = sequence.query_start + rows.row;
    A factors[kQueryTile];
    A lse[kQueryTile];
    for (std::int64_t r = 0; r < rows.rows; ++r) {
        const RowState<A> keys = rows.state(r);
        const RowState<A> all = with_sinks(setup, rows.head, keys);
        const A shrink = all.reference == keys.reference ? A(1) : exp_fast(keys.reference - all.reference);
        factors[r] = all.sum == A(0) ? A(1) : shrink / all.sum;
        if (call.extras.lse) {
            lse[r] = call.extras.lse_counts_sinks ? all.lse() : keys.lse();
        }
    }
    setup.kernels.store(rows_of(call.out, sequence.batch, rows.head, query, rows.rows), rows.context,
                        call.problem.value_dim, factors, 1);
    if (call.extras.lse) {
        const TensorView& to = *call.extras.lse;
        store(to.at(sequence.batch, rows.head, query, 0), to.dtype, to.strides[2], lse, rows.rows);
    }
    if (call.extras.weights || call.extras.scores) {
        record_rows(setup, sequence, rows, scratch);
    }
}

template void write_rows<float>(const ForwardSetup<float>&, const Sequence&, const RowTile<float>&,
                                const ForwardScratch<float>&);
template void write_rows<double>(const ForwardSetup<double>&, const Sequence&, const RowTile<double>&,
                                 const ForwardScratch<double>&);

}  // namespace qkv::detail
