// One tile of backward: weights and score gradients from lse and delta. The three passes share it.
#pragma once

#include "attention/backward.hpp"
#include "attention/dropout.hpp"
#include "attention/score_tile.hpp"
#include "attention/state.hpp"

namespace qkv::detail {

/// Per query row of the call, [B, Hq, Tq] row-major.
template <class A>
struct RowStatistics {
    A* lse;          // of all scores, the sink among them
    A* delta;        // Σ dO · O
    double* dalibi;  // [query tile, Hq]: Σ dS · d score / d slope

    [[nodiscard]] static std::int64_t index(const Problem& problem, const Sequence& sequence, std::int64_t head,
                                            std::int64_t row) {
        return (sequence.batch * problem.heads + head) * problem.queries + sequence.query_start + row;
    }
};

template <class A>
struct BackwardScratch {
    BackwardScratch(const Problem& problem, Carver& carver)
        : query(carver.take<A>(kQueryTile * problem.head_dim)),
          key(carver.take<A>(kKeyTile * problem.head_dim)),
          key_transposed(carver.take<A>(kKeyTile * problem.head_dim)),
          value(carver.take<A>(kKeyTile * problem.value_dim)),
          value_transposed(carver.take<A>(kKeyTile * problem.value_dim)),
          d_out(carver.take<A>(kQueryTile * problem.value_dim)),
          weights(carver.take<A>(kQueryTile * kKeyTile)),
          d_scores(carver.take<A>(kQueryTile * kKeyTile)),
          factors(carver.take<A>(problem.dropout ? kQueryTile * kKeyTile : 0)),
          trail{carver.take<A>(problem.softcap > 0.0 ? kQueryTile * kKeyTile : 0),
                carver.take<A>(problem.score_function.apply != nullptr ? kQueryTile * kKeyTile : 0)},
          scores{carver.take<A>(kQueryTile * kKeyTile),
                 carver.take<A>(problem.mask.bias_view ? kQueryTile * kKeyTile : 0),
                 carver.take<std::uint8_t>(kQueryTile * kKeyTile)},
          d_query(carver.take<A>(kQueryTile * problem.head_dim)),
          d_key(carver.take<A>(kKeyTile * problem.head_dim)),
          d_value(carver.take<A>(kKeyTile * problem.value_dim)),
          d_bias(carver.take<double>(problem.mask.bias_view ? kQueryTile * kKeyTile : 0)) {}

    A* query;             // (rows, D)
    A* key;               // (columns, D)
    A* key_transposed;    // (D, kKeyTile)
    A* value;             // (columns, Dv)
    A* value_transposed;  // (Dv, kKeyTile)
    A* d_out;             // (rows, Dv)
    A* weights;           // (rows, kKeyTile), dropout's factors included
    A* d_scores;          // (rows, kKeyTile)
    A* factors;           // (rows, kKeyTile)
    ScoreTrail<A> trail;
    ScoreScratch<A> scores;
    A* d_query;      // (rows, D)
    A* d_key;        // (columns, D)
    A* d_value;      // (columns, Dv)
    double* d_bias;  // (rows, kKeyTile)
};

/// Loads the tile's rows of q and dO.
template <class A>
void load_query_side(const BackwardCall& call, const Sequence& sequence, std::int64_t head, std::int64_t row,
                     std::int64_t rows, const BackwardScratch<A>& scratch) {
    load_rows(scratch.query, call.problem.q, sequence.batch, head, sequence.query_start + row, rows);
    load_rows(scratch.d_out, call.d_out, sequence.batch, head, sequence.query_start + row, rows);
}

/// Loads the tile's rows of k and v, plain and transposed.
template <class A>
void load_key_side(const Problem& problem, const Sequence& sequence, std::int64_t kv_head, std::int64_t column,
                   std::int64_t columns, const BackwardScratch<A>& scratch) {
    load_keys(scratch.key, problem, sequence, kv_head, column, columns);
    load_values(scratch.value, problem, sequence, kv_head, column, columns);
    transpose(scratch.key_transposed, scratch.key, columns, problem.head_dim);
    transpose(scratch.value_transposed, scratch.value, columns, problem.value_dim);
}

/// Sets every entry whose score is −∞ to 0, whatever arithmetic on masked numbers has left there.
template <class A>
void clear_masked(const Tile& tile, const A* scores, A* values) {
    for (std::int64_t i = 0; i < tile.rows * kKeyTile; ++i) {
        values[i] = scores[i] == kMinusInfinity<A> ? A(0) : values[i];
    }
}

/// scratch.weights ← P ∘ Z and scratch.d_scores ← the gradient of the scores as they are after bias and ALiBi.
/// prepare_mask has been asked; query and key sides are loaded.
template <class A>
void bias_gradient_tile(const Problem& problem, const Tile& tile, const RowStatistics<A>& statistics,
                        const BackwardScratch<A>& scratch) {
    A* scores = scratch.scores.scores;
    multiply_tile(scores, scratch.query, scratch.key_transposed, tile.rows, problem.head_dim);
    finish_scores(problem, tile, scratch.scores, scratch.trail);
    multiply_tile(scratch.d_scores, scratch.d_out, scratch.value_transposed, tile.rows, problem.value_dim);
    if (problem.dropout) {
        dropout_factors(problem, tile, scratch.factors);
    }
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        const std::int64_t at = RowStatistics<A>::index(problem, *tile.sequence, tile.head, tile.row + r);
        const A base = subtrahend(statistics.lse[at]);
        const A delta = statistics.delta[at];
        const A* score = scores + r * kKeyTile;
        A* weight = scratch.weights + r * kKeyTile;
        A* d_score = scratch.d_scores + r * kKeyTile;
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            weight[c] = exp_fast(score[c] - base);
        }
        if (problem.dropout) {
            const A* factor = scratch.factors + r * kKeyTile;
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                d_score[c] = weight[c] * (factor[c] * d_score[c] - delta);
                weight[c] *= factor[c];
            }
        } else {
            for (std::int64_t c = 0; c < kKeyTile; ++c) {
                d_score[c] = weight[c] * (d_score[c] - delta);
            }
        }
    }
    clear_masked(tile, scores, scratch.d_scores);
    if (problem.score_function.apply != nullptr) {
        problem.score_function.gradient(problem.score_function.user,
                                        public_tile(problem, tile, scratch.trail.before_function),
                                        public_tile(problem, tile, scratch.d_scores));
        clear_masked(tile, scores, scratch.d_scores);
    }
}

/// scratch.d_scores, from after bias and ALiBi back to the product q · k: through softcap and scale.
template <class A>
void product_gradient_tile(const Problem& problem, const Tile& tile, const BackwardScratch<A>& scratch) {
    const auto scale = static_cast<A>(problem.scale);
    const std::int64_t count = tile.rows * kKeyTile;
    if (problem.softcap > 0.0) {
        const auto cap = static_cast<A>(problem.softcap);
        for (std::int64_t i = 0; i < count; ++i) {
            const A tanh = scratch.trail.capped[i] / cap;
            scratch.d_scores[i] *= A(1) - tanh * tanh;
        }
        clear_masked(tile, scratch.scores.scores, scratch.d_scores);
    }
    for (std::int64_t i = 0; i < count; ++i) {
        scratch.d_scores[i] *= scale;
    }
}

/// c (rows, width) += left · b, leaving out masked entries where b is not finite.
template <class A>
void add_product(A* c, const Left<A>& left, const Tile& tile, const A* scores, const A* b, std::int64_t rows,
                 std::int64_t inner, std::int64_t width) {
    if (tile.full || all_finite(b, inner * width)) {
        multiply_add(c, left, b, rows, inner, width);
    } else {
        multiply_add_unmasked(c, left, scores, b, rows, inner, width);
    }
}

/// Writes dbias, its items shared out over the runtime's tasks.
template <class A>
void run_bias_pass(const BackwardCall& call, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
                   const RowStatistics<A>& statistics);

}  // namespace qkv::detail
