// Weights and scores for those who ask: a second walk over the row's keys.
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

}  // namespace

template <class A>
void record_rows(const ForwardCall& call, const Sequence& sequence, std::int64_t head, std::int64_t row,
                 std::int64_t rows, const ForwardScratch<A>& scratch) {
    const Problem& problem = call.problem;
    const AttentionExtras& extras = call.extras;
    const Recorder<A> recorder{sequence, head, row, rows};
    const bool masked_scores = extras.scores && extras.scores_at == ScorePoint::masked;
    const bool weights_as_scores = extras.scores && extras.scores_at == ScorePoint::weights;

    if (extras.weights) {
        recorder.fill(*extras.weights, A(0));
    }
    if (extras.scores) {
        recorder.fill(*extras.scores, masked_scores ? kMinusInfinity<A> : A(0));
    }
    if (extras.weights || masked_scores || weights_as_scores) {
        for_each_tile(problem, sequence, head, row, rows, [&](const Tile& tile) {
            if (!score_tile(problem, tile, scratch)) {
                return;
            }
            const A* scores = scratch.scores.scores;
            if (masked_scores) {
                recorder.put_tile(*extras.scores, tile, scores);
            }
            for (std::int64_t r = 0; r < tile.rows; ++r) {
                const RowState<A>& state = scratch.states[r];
                const A base = subtrahend(state.max);
                const A sum = state.sum == A(0) ? A(1) : state.sum;
                for (std::int64_t c = 0; c < kKeyTile; ++c) {
                    const std::int64_t at = r * kKeyTile + c;
                    scratch.weights[at] = exp_fast(scores[at] - base) / sum;
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
            const Tile tile{&sequence, head, row, rows, column, std::min(kKeyTile, sequence.keys - column), true};
            multiply_query_key(problem, tile, scratch);
            scale_scores(problem, scratch.scores.scores, rows);
            if (extras.scores_at == ScorePoint::capped) {
                cap_scores(problem, scratch.scores.scores, rows);
            }
            recorder.put_tile(*extras.scores, tile, scratch.scores.scores);
        }
    }
}

template void record_rows<float>(const ForwardCall&, const Sequence&, std::int64_t, std::int64_t, std::int64_t,
                                 const ForwardScratch<float>&);
template void record_rows<double>(const ForwardCall&, const Sequence&, std::int64_t, std::int64_t, std::int64_t,
                                  const ForwardScratch<double>&);

}  // namespace qkv::detail
