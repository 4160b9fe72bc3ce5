// One tile of backward: weights and score gradients from lse and delta. Panels and the bias pass share it.
#pragma once

#include <cmath>
#include <cstring>

#include "attention/backward.hpp"
#include "attention/dropout.hpp"
#include "attention/score_tile.hpp"
#include "attention/state.hpp"
#include "core/check.hpp"

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

/// bf16 kernels take the bits of bf16 numbers: all of q, k, v and dO must be.
template <class A>
[[nodiscard]] const Kernels<A>& backward_kernels(const BackwardCall& call, const Runtime& runtime) {
    return call.d_out.dtype == call.problem.q.dtype
               ? kernels_for<A>(call.problem, runtime)
               : kernels::table<A>(runtime.instruction_set(), call.problem.compute);
}

/// What one key head's gradients are summed over: its group's query heads, in panels that pass in order.
struct Panels {
    Panels(const BackwardCall& call, const Runtime& runtime);

    /// Panels of a sequence of `queries`. One without queries has an empty one: its keys' gradients are 0.
    [[nodiscard]] std::int64_t count(const Problem& problem, std::int64_t queries) const {
        return std::max<std::int64_t>(1, tiles_of(queries, cut.tokens) * cut.head_pieces(problem));
    }
    /// Pieces that the heads of a group are cut into, the panels of the same queries.
    [[nodiscard]] std::int64_t head_pieces(const Problem& problem) const {
        return std::max<std::int64_t>(1, cut.head_pieces(problem));
    }
    [[nodiscard]] std::int64_t first_query(const Problem& problem, std::int64_t panel) const {
        return panel / head_pieces(problem) * cut.tokens;
    }

    RowCut cut;
    std::int64_t chains = 0;       // key heads of all sequences
    std::int64_t most_panels = 1;  // of a chain
    std::int64_t most_keys = 0;    // of a sequence
    bool by_chains = true;         // an item of work is a chain, else one of its panels
};

template <class A>
struct BackwardSetup {
    BackwardSetup(const BackwardCall& backward_call, const Runtime& runtime)
        : call(backward_call), kernels(backward_kernels<A>(backward_call, runtime)), panels(backward_call, runtime) {
        (kernels.scales_queries ? query_scale : product_scale) = static_cast<A>(call.problem.scale);
        const auto kept = [&](const std::optional<TensorView>& view) {
            return !view || (view->dtype == call.problem.compute && !kernels.sums_transposed);
        };
        const std::optional<TensorView>& dbias = call.gradients.dbias;
        const Problem& problem = call.problem;
        writes_bias = dbias && !problem.packed() &&
                      dbias->shape == Shape4{problem.batch, problem.heads, problem.queries, problem.keys};
        gathers = panels.most_panels > 1 && !(kept(call.gradients.dk) && kept(call.gradients.dv));
    }

    const BackwardCall& call;
    const Kernels<A>& kernels;
    Panels panels;
    A query_scale = A(1);  // as in ForwardSetup
    A product_scale = A(1);
    /// Whether sums of dK and dV need room of their own between panels; else they wait in dk and dv.
    bool gathers = false;
    /// Whether each number of dbias is the gradient of one score: then it is written where that is computed.
    bool writes_bias = false;
};

/// A tile of queries and of dO in the forms that the products want, with the dQ it gathers.
template <class A>
struct QueryTile {
    std::int64_t head = 0;
    std::int64_t row = 0;
    std::int64_t rows = 0;
    KeyRange needed;
    const A* query = nullptr;
    const A* d_out = nullptr;
    const A* query_sums = nullptr;  // as add_over_queries wants them; nullptr: not finite, see add_to_sums
    const A* d_out_sums = nullptr;
    A* d_query = nullptr;  // (rows, padded D), without the scale
    double slope_gradient = 0.0;
};

/// Gradients of a tile of keys, as add_over_queries sums them.
template <class A>
struct KeySums {
    A* key = nullptr;
    A* value = nullptr;
};

/// Sums of a chain's dK and dV, of those that are wanted, in A.
template <class A>
[[nodiscard]] std::int64_t sums_room(const BackwardSetup<A>& setup) {
    const AttentionGradients& wanted = setup.call.gradients;
    const Problem& problem = setup.call.problem;
    return checked_multiply(
        tiles_of(setup.panels.most_keys, kKeyTile) * kKeyTile,
        (wanted.dk ? kernels::padded(problem.head_dim) : 0) + (wanted.dv ? kernels::padded(problem.value_dim) : 0),
        "attention_backward: sums of dk and dv");
}

template <class A>
struct BackwardScratch {
    BackwardScratch(const BackwardSetup<A>& setup, Carver& carver)
        : key_width(kernels::padded(setup.call.problem.head_dim)),
          value_width(kernels::padded(setup.call.problem.value_dim)),
          key(carver.take<A>(kKeyTile * key_width)),
          value(carver.take<A>(kKeyTile * value_width)),
          clean_key(carver.take<A>(kKeyTile * key_width)),
          clean_rows(carver.take<A>(kQueryTile * std::max(key_width, value_width))),
          packed_clean_rows(carver.take<A>(setup.kernels.query_sum_room(std::max(key_width, value_width)))),
          packed_key(carver.take<A>(setup.kernels.key_room(setup.call.problem.head_dim))),
          packed_value(carver.take<A>(setup.kernels.key_room(setup.call.problem.value_dim))),
          packed_key_values(carver.take<A>(setup.kernels.value_room(setup.call.problem.head_dim))),
          weights(carver.take<A>(kQueryTile * kKeyTile)),
          d_scores(carver.take<A>(kQueryTile * kKeyTile)),
          packed_weights(carver.take<A>(kQueryTile * kKeyTile)),
          d_key(carver.take<A>(kKeyTile * key_width)),
          d_value(carver.take<A>(kKeyTile * value_width)),
          sum_rows(carver.take<A>(kKeyTile * std::max(key_width, value_width))) {
        const Problem& problem = setup.call.problem;
        const Kernels<A>& kernels = setup.kernels;
        const std::int64_t tile_count = setup.panels.cut.row_tiles();
        const std::int64_t scores_of_tile = kQueryTile * kKeyTile;
        factors = carver.take<A>(problem.dropout ? scores_of_tile : 0);
        trail = {carver.take<A>(problem.softcap > 0.0 ? scores_of_tile : 0),
                 carver.take<A>(problem.score_function.apply != nullptr ? scores_of_tile : 0)};
        scores = {carver.take<A>(scores_of_tile), carver.take<A>(problem.mask.bias_view ? scores_of_tile : 0),
                  carver.take<std::uint64_t>(kQueryTile)};
        d_bias = carver.take<double>(problem.mask.bias_view ? scores_of_tile : 0);
        tiles = carver.take<QueryTile<A>>(tile_count);
        query_room = kernels.query_room(problem.head_dim);
        d_out_room = kernels.query_room(problem.value_dim);
        query_sum_room = kernels.query_sum_room(problem.head_dim);
        d_out_sum_room = kernels.query_sum_room(problem.value_dim);
        // Where packing copies them, the rows themselves are free again.
        packs = kernels.query_sum_room(1) > 0;
        query = carver.take<A>((packs ? 1 : tile_count) * kQueryTile * key_width);
        d_out = carver.take<A>((packs ? 1 : tile_count) * kQueryTile * value_width);
        packed_queries = carver.take<A>(tile_count * (query_room + query_sum_room));
        packed_d_outs = carver.take<A>(tile_count * (d_out_room + d_out_sum_room));
        d_queries = carver.take<A>(tile_count * kQueryTile * key_width);
        chain_sums = setup.gathers && setup.panels.by_chains ? carver.take<A>(sums_room(setup)) : nullptr;
    }

    std::int64_t key_width;    // padded D
    std::int64_t value_width;  // padded Dv
    A* key;                    // (columns, key_width)
    A* value;                  // (columns, value_width)
    A* clean_key;              // key, 0 in place of what is not finite
    A* clean_rows;             // rows of q or dO, likewise
    A* packed_clean_rows;
    A* packed_key;  // room for what follows
    A* packed_value;
    A* packed_key_values;
    const A* key_form = nullptr;  // keys and values as multiply_keys wants them
    const A* value_form = nullptr;
    const A* key_values = nullptr;  // keys as add_values wants them
    A* weights;                     // (rows, kKeyTile), dropout's factors included
    A* d_scores;                    // (rows, kKeyTile)
    A* packed_weights;
    A* d_key;  // sums, where they have no room elsewhere
    A* d_value;
    A* sum_rows;  // sums as rows
    A* factors = nullptr;
    ScoreTrail<A> trail;
    ScoreScratch<A> scores{};
    double* d_bias = nullptr;  // (rows, kKeyTile)
    QueryTile<A>* tiles = nullptr;
    std::int64_t query_room = 0;
    std::int64_t d_out_room = 0;
    std::int64_t query_sum_room = 0;
    std::int64_t d_out_sum_room = 0;
    bool packs = false;
    // Of all tiles of a panel.
    A* query = nullptr;  // (rows, key_width)
    A* d_out = nullptr;  // (rows, value_width)
    A* packed_queries = nullptr;
    A* packed_d_outs = nullptr;
    A* d_queries = nullptr;
    A* chain_sums = nullptr;  // of all keys of a chain, where its panels gather them
    bool finite_key = false;
};

/// to ← values, 0 in place of what is not finite.
template <class A>
void clean(A* to, const A* values, std::int64_t count) {
    std::transform(values, values + count, to, [](A x) { return std::isfinite(x) ? x : A(0); });
}

/// Rows of q or of dO.
template <class A>
[[nodiscard]] Rows query_rows(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t head,
                              std::int64_t row, std::int64_t rows) {
    return rows_of(setup.call.problem.q, sequence.batch, head, sequence.query_start + row, rows);
}
template <class A>
[[nodiscard]] Rows d_out_rows(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t head,
                              std::int64_t row, std::int64_t rows) {
    return rows_of(setup.call.d_out, sequence.batch, head, sequence.query_start + row, rows);
}

/// scratch.tiles[number] ← a tile of queries and dO, packed; its dQ 0.
template <class A>
QueryTile<A>& load_query_side(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t head,
                              std::int64_t row, std::int64_t rows, std::int64_t number,
                              const BackwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Kernels<A>& kernels = setup.kernels;
    const std::int64_t place = scratch.packs ? 0 : number * kQueryTile;
    const auto pack = [&](const Rows& from, std::int64_t width, A factor, A* to, A* room, std::int64_t form_room,
                          const A*& form, const A*& sums) {
        const bool finite = kernels.load(to, kernels::padded(width), from, width, factor);
        form = kernels.pack_queries(room, kernels::loaded(to, rows, width), width);
        sums = finite ? kernels.pack_query_sums(room + form_room, to, rows, width) : nullptr;
    };
    QueryTile<A>& tile = scratch.tiles[number];
    tile = {head, row, rows, needed_keys(sequence, row, rows)};
    pack(query_rows(setup, sequence, head, row, rows), problem.head_dim, setup.query_scale,
         scratch.query + place * scratch.key_width,
         scratch.packed_queries + number * (scratch.query_room + scratch.query_sum_room), scratch.query_room,
         tile.query, tile.query_sums);
    pack(d_out_rows(setup, sequence, head, row, rows), problem.value_dim, A(1),
         scratch.d_out + place * scratch.value_width,
         scratch.packed_d_outs + number * (scratch.d_out_room + scratch.d_out_sum_room), scratch.d_out_room, tile.d_out,
         tile.d_out_sums);
    tile.d_query = scratch.d_queries + number * kQueryTile * scratch.key_width;
    std::fill_n(tile.d_query, rows * scratch.key_width, A(0));
    return tile;
}

/// Loads and packs the tile's rows of k and v.
template <class A>
void load_key_side(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head, std::int64_t column,
                   std::int64_t columns, BackwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Kernels<A>& kernels = setup.kernels;
    scratch.finite_key = load_keys(kernels, scratch.key, problem, sequence, kv_head, column, columns);
    load_values(kernels, scratch.value, problem, sequence, kv_head, column, columns);
    const auto form = [&](A* room, const A* rows, std::int64_t width) {
        return kernels.pack_keys(room, 0, kernels::loaded(rows, columns, width), width, nullptr);
    };
    scratch.key_form = form(scratch.packed_key, scratch.key, problem.head_dim);
    scratch.value_form = form(scratch.packed_value, scratch.value, problem.value_dim);
    if (!scratch.finite_key) {
        clean(scratch.clean_key, scratch.key, columns * scratch.key_width);
    }
    const A* keys = scratch.finite_key ? scratch.key : scratch.clean_key;
    scratch.key_values = kernels.pack_values(scratch.packed_key_values,
                                             kernels::loaded(keys, columns, problem.head_dim), problem.head_dim);
}

/// Sets every entry whose score is −∞ to 0, whatever arithmetic on masked numbers has left there.
template <class A>
void clear_masked(const Tile& tile, const A* scores, A* values) {
    for (std::int64_t i = 0; i < tile.rows * kKeyTile; ++i) {
        values[i] = scores[i] == kMinusInfinity<A> ? A(0) : values[i];
    }
}

/// scratch.weights ← P ∘ Z and scratch.d_scores ← the gradient of the scores as they are after bias and ALiBi.
/// prepare_mask has been asked; the key side is loaded.
template <class A>
void bias_gradient_tile(const BackwardSetup<A>& setup, const Tile& tile, const QueryTile<A>& rows,
                        const RowStatistics<A>& statistics, const BackwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Kernels<A>& kernels = setup.kernels;
    A* scores = scratch.scores.scores;
    const kernels::Columns columns = columns_met(problem, tile, tile.columns);
    kernels.multiply_keys(scores, rows.query, scratch.key_form, tile.rows, columns, problem.head_dim, nullptr);
    finish_scores(problem, kernels, tile, scratch.scores, setup.product_scale, scratch.trail);
    kernels.multiply_keys(scratch.d_scores, rows.d_out, scratch.value_form, tile.rows, columns, problem.value_dim,
                          nullptr);
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

/// sums (outer, i) += left (outer, inner) · b (inner, i) where b is not finite and the score at (outer, inner) not
/// masked. With b cleaned elsewhere, 0 × NaN is met nowhere, and whoever may see a NaN does.
template <class A>
void add_what_is_not_finite(A* sums, std::int64_t outer_step, std::int64_t i_step, const Left<A>& left, const A* scores,
                            const A* b, std::int64_t outer, std::int64_t inner, std::int64_t width) {
    for (std::int64_t n = 0; n < inner; ++n) {
        for (std::int64_t i = 0; i < width; ++i) {
            const A factor = b[n * width + i];
            for (std::int64_t o = 0; !std::isfinite(factor) && o < outer; ++o) {
                const std::int64_t at = o * left.row_step + n * left.inner_step;
                if (scores[at] != kMinusInfinity<A>) {
                    sums[o * outer_step + i * i_step] += left.data[at] * factor;
                }
            }
        }
    }
}

/// sums += weightsᵀ · rows of queries or dO, whose form `packed` is; nullptr: they are not finite, and `find` has them.
template <class A, class Find>
void add_to_sums(const BackwardSetup<A>& setup, const Tile& tile, A* sums, const A* weights, const A* packed,
                 std::int64_t width, A factor, const Find& find, const BackwardScratch<A>& scratch) {
    const Kernels<A>& kernels = setup.kernels;
    if (packed == nullptr) {
        const std::int64_t across = kernels::padded(width);
        A* rows = scratch.clean_rows;
        (void)kernels.load(rows, across, find(setup, *tile.sequence, tile.head, tile.row, tile.rows), width, factor);
        add_what_is_not_finite(sums, kernels.sums_transposed ? 1 : across, kernels.sums_transposed ? kKeyTile : 1,
                               {weights, 1, kKeyTile}, scratch.scores.scores, rows, tile.columns, tile.rows, across);
        clean(rows, rows, tile.rows * across);
        packed = kernels.pack_query_sums(scratch.packed_clean_rows, rows, tile.rows, width);
    }
    kernels.add_over_queries(sums, kernels.pack_weights(scratch.packed_weights, weights, tile.rows), packed, tile.rows,
                             columns_met(setup.call.problem, tile, tile.columns), width);
}

/// Adds what one tile gives to dK, dV and dQ, of those that are wanted. scratch.d_scores are lost.
template <class A>
void add_gradients(const BackwardSetup<A>& setup, const Tile& tile, const QueryTile<A>& rows, const KeySums<A>& sums,
                   const BackwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const AttentionGradients& wanted = setup.call.gradients;
    if (wanted.dv) {
        add_to_sums(setup, tile, sums.value, scratch.weights, rows.d_out_sums, problem.value_dim, A(1), d_out_rows<A>,
                    scratch);
    }
    if (wanted.dk) {
        add_to_sums(setup, tile, sums.key, scratch.d_scores, rows.query_sums, problem.head_dim, setup.query_scale,
                    query_rows<A>, scratch);
    }
    if (wanted.dq) {
        if (!scratch.finite_key) {
            add_what_is_not_finite(rows.d_query, scratch.key_width, 1, {scratch.d_scores, kKeyTile, 1},
                                   scratch.scores.scores, scratch.key, tile.rows, tile.columns, scratch.key_width);
        }
        setup.kernels.round_weights(scratch.d_scores, tile.rows);
        setup.kernels.add_values(rows.d_query, scratch.d_scores, scratch.key_values, tile.rows,
                                 columns_met(problem, tile, tile.columns), problem.head_dim);
    }
}

/// One row of dbias ← 0, of a head's query (counted in the batch).
inline void clear_bias_row(const TensorView& dbias, std::int64_t batch, std::int64_t head, std::int64_t query) {
    if (dbias.strides[3] == 1) {
        std::memset(dbias.at(batch, head, query, 0), 0, static_cast<std::size_t>(dbias.size(3) * size_of(dbias.dtype)));
        return;
    }
    const double nothing = 0.0;
    for (std::int64_t key = 0; key < dbias.size(3); ++key) {
        store(dbias.at(batch, head, query, key), dbias.dtype, 1, &nothing, 1);
    }
}

/// The tile's part of a dbias that is not repeated ← its score gradients.
template <class A>
void write_bias_tile(const BackwardSetup<A>& setup, const Tile& tile, const A* d_scores) {
    const TensorView& dbias = *setup.call.gradients.dbias;
    const auto row_at = [&](std::int64_t r) {
        return dbias.at(tile.sequence->batch, tile.head, tile.row + r, tile.column);
    };
    if (dbias.strides[3] == 1 && tile.columns == kKeyTile) {
        const A one = A(1);
        setup.kernels.store({row_at(0), dbias.dtype, dbias.strides[2], tile.rows}, d_scores, kKeyTile, &one, 0);
        return;
    }
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        store(row_at(r), dbias.dtype, dbias.strides[3], d_scores + r * kKeyTile, tile.columns);
    }
}

/// Writes dbias where it is repeated, its items shared out over the runtime's tasks.
template <class A>
void run_bias_pass(const BackwardSetup<A>& setup, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
                   const RowStatistics<A>& statistics);

}  // namespace qkv::detail
