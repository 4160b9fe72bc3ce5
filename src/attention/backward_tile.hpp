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
struct BackwardSetup {
    BackwardSetup(const BackwardCall& backward_call, const Runtime& runtime)
        : call(backward_call), kernels(kernels_for<A>(call.problem, runtime)) {
        const Problem& problem = call.problem;
        const AttentionGradients& wanted = call.gradients;
        const std::int64_t items = problem.sequences * problem.kv_heads;
        const bool even = items % runtime.threads() == 0 || items >= 4 * runtime.threads();
        by_heads = wanted.dq && (wanted.dk || wanted.dv) && !wanted.dalibi && even;
        gathers_queries = by_heads && wanted.dq->dtype != problem.compute;
    }

    const BackwardCall& call;
    const Kernels<A>& kernels;
    /// An item of work is a key head with all its queries: five products. Where
    /// those do not share out evenly, tiles of keys and of queries are items of two passes: seven products. The bits
    /// are the same.
    bool by_heads = false;
    /// Whether dQ needs room of its own until it is rounded to its type.
    bool gathers_queries = false;
};

template <class A>
struct BackwardScratch {
    BackwardScratch(const BackwardSetup<A>& setup, Carver& carver) : BackwardScratch(setup.call.problem, carver) {
        const Problem& problem = setup.call.problem;
        query_sums =
            setup.gathers_queries ? carver.take<A>(problem.group * problem.queries * problem.head_dim) : nullptr;
    }
    BackwardScratch(const Problem& problem, Carver& carver)
        : key_width(kernels::padded(problem.head_dim)),
          value_width(kernels::padded(problem.value_dim)),
          query(carver.take<A>(kQueryTile * key_width)),
          key(carver.take<A>(kKeyTile * key_width)),
          key_transposed(carver.take<A>(kKeyTile * key_width)),
          value(carver.take<A>(kKeyTile * value_width)),
          value_transposed(carver.take<A>(kKeyTile * value_width)),
          d_out(carver.take<A>(kQueryTile * value_width)),
          cleared(carver.take<A>(kQueryTile * std::max(key_width, value_width))),
          weights(carver.take<A>(kQueryTile * kKeyTile)),
          d_scores(carver.take<A>(kQueryTile * kKeyTile)),
          factors(carver.take<A>(problem.dropout ? kQueryTile * kKeyTile : 0)),
          trail{carver.take<A>(problem.softcap > 0.0 ? kQueryTile * kKeyTile : 0),
                carver.take<A>(problem.score_function.apply != nullptr ? kQueryTile * kKeyTile : 0)},
          scores{carver.take<A>(kQueryTile * kKeyTile),
                 carver.take<A>(problem.mask.bias_view ? kQueryTile * kKeyTile : 0),
                 carver.take<std::uint8_t>(kQueryTile * kKeyTile)},
          d_query(carver.take<A>(kQueryTile * key_width)),
          d_key(carver.take<A>(kKeyTile * key_width)),
          d_value(carver.take<A>(kKeyTile * value_width)),
          d_bias(carver.take<double>(problem.mask.bias_view ? kQueryTile * kKeyTile : 0)) {}

    std::int64_t key_width;    // padded D
    std::int64_t value_width;  // padded Dv
    A* query;                  // (rows, key_width), scaled
    A* key;                    // (columns, key_width)
    A* key_transposed;         // (key_width, kKeyTile)
    A* value;                  // (columns, value_width)
    A* value_transposed;       // (value_width, kKeyTile)
    A* d_out;                  // (rows, value_width)
    A* cleared;                // a copy for one row
    A* weights;                // (rows, kKeyTile), dropout's factors included
    A* d_scores;               // (rows, kKeyTile)
    A* factors;                // (rows, kKeyTile)
    ScoreTrail<A> trail;
    ScoreScratch<A> scores;
    A* d_query;               // (rows, key_width)
    A* d_key;                 // (columns, key_width)
    A* d_value;               // (columns, value_width)
    double* d_bias;           // (rows, kKeyTile)
    A* query_sums = nullptr;  // (group, Tq, D), where dQ is gathered
    bool finite_query = false;
    bool finite_key = false;
    bool finite_d_out = false;
};

/// Loads the tile's rows of scale · q and of dO.
template <class A>
void load_query_side(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t head, std::int64_t row,
                     std::int64_t rows, BackwardScratch<A>& scratch) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    const std::int64_t token = sequence.query_start + row;
    scratch.finite_query =
        setup.kernels.load(scratch.query, scratch.key_width, rows_of(problem.q, sequence.batch, head, token, rows),
                           problem.head_dim, static_cast<A>(problem.scale));
    scratch.finite_d_out =
        setup.kernels.load(scratch.d_out, scratch.value_width, rows_of(call.d_out, sequence.batch, head, token, rows),
                           problem.value_dim, A(1));
}

/// Loads the tile's rows of k and v, plain and transposed.
template <class A>
void load_key_side(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head, std::int64_t column,
                   std::int64_t columns, BackwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Kernels<A>& kernels = setup.kernels;
    scratch.finite_key = load_keys(kernels, scratch.key, problem, sequence, kv_head, column, columns);
    load_values(kernels, scratch.value, problem, sequence, kv_head, column, columns);
    kernels.transpose(scratch.key_transposed, scratch.key, scratch.key_width, columns, problem.head_dim);
    kernels.transpose(scratch.value_transposed, scratch.value, scratch.value_width, columns, problem.value_dim);
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
void bias_gradient_tile(const BackwardSetup<A>& setup, const Tile& tile, const RowStatistics<A>& statistics,
                        const BackwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Kernels<A>& kernels = setup.kernels;
    A* scores = scratch.scores.scores;
    kernels.multiply(scores, kKeyTile, {scratch.query, scratch.key_width, 1}, scratch.key_transposed, kKeyTile,
                     tile.rows, problem.head_dim, kKeyTile);
    finish_scores(problem, kernels, tile, scratch.scores, scratch.trail);
    kernels.multiply(scratch.d_scores, kKeyTile, {scratch.d_out, scratch.value_width, 1}, scratch.value_transposed,
                     kKeyTile, tile.rows, problem.value_dim, kKeyTile);
    if (problem.dropout) {
        dropout_factors(kernels, problem, tile, scratch.factors);
    }
    const std::int64_t at = RowStatistics<A>::index(problem, *tile.sequence, tile.head, tile.row);
    kernels.score_gradients(scratch.weights, scratch.d_scores, scores, problem.dropout ? scratch.factors : nullptr,
                            statistics.lse + at, statistics.delta + at, tile.rows);
    if (problem.score_function.apply != nullptr) {
        problem.score_function.gradient(problem.score_function.user,
                                        public_tile(problem, tile, scratch.trail.before_function),
                                        public_tile(problem, tile, scratch.d_scores));
        kernels.enter();  // as after the function itself
        clear_masked(tile, scores, scratch.d_scores);
    }
}

/// scratch.d_scores, from after bias and ALiBi back to the scaled product: through softcap.
template <class A>
void product_gradient_tile(const Problem& problem, const Tile& tile, const BackwardScratch<A>& scratch) {
    if (problem.softcap > 0.0) {
        const A inverse = A(1) / static_cast<A>(problem.softcap);
        for (std::int64_t i = 0; i < tile.rows * kKeyTile; ++i) {
            const A tanh = scratch.trail.capped[i] * inverse;
            scratch.d_scores[i] *= A(1) - tanh * tanh;
        }
        clear_masked(tile, scratch.scores.scores, scratch.d_scores);
    }
}

/// c (rows, width) += left · b, leaving out masked entries where b is not finite.
template <class A>
void add_product(const Kernels<A>& kernels, A* c, const Left<A>& left, const Tile& tile,
                 const BackwardScratch<A>& scratch, const A* b, bool finite, std::int64_t rows, std::int64_t inner,
                 std::int64_t width) {
    if (finite || tile.full) {
        kernels.multiply_add(c, width, left, b, width, rows, inner, width);
    } else {
        multiply_add_unmasked(kernels, c, left, scratch.scores.scores, b, rows, inner, width, scratch.cleared);
    }
}

/// Writes dbias, its items shared out over the runtime's tasks.
template <class A>
void run_bias_pass(const BackwardSetup<A>& setup, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
                   const RowStatistics<A>& statistics);

}  // namespace qkv::detail
