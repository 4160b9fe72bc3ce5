#include "attention/backward.hpp"

#include <algorithm>

#include "attention/backward_tile.hpp"
#include "core/check.hpp"

namespace qkv::detail {

namespace {

template <class A>
RowStatistics<A> take_statistics(const BackwardCall& call, Carver& carver) {
    const Problem& problem = call.problem;
    const std::int64_t rows =
        checked_multiply(checked_multiply(problem.batch, problem.heads, "attention_backward: rows"), problem.queries,
                         "attention_backward: rows");
    const std::int64_t tiles = call.gradients.dalibi ? tile_count(problem, Side::queries) * problem.heads : 0;
    return {carver.take<A>(rows), carver.take<A>(rows), carver.take<double>(tiles)};
}

/// Statistics of one tile of queries of one head.
template <class A>
void row_statistics(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t head, std::int64_t row,
                    std::int64_t rows, const BackwardScratch<A>& scratch, const RowStatistics<A>& statistics) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    const AttentionSaved& saved = call.saved;
    const std::int64_t query = sequence.query_start + row;
    const std::int64_t at = RowStatistics<A>::index(problem, sequence, head, row);
    const auto load_column = [&](A* to, const ConstTensorView& from) {
        load(to, from.at(sequence.batch, head, query, 0), from.dtype, from.strides[2], rows);
    };
    A* const lse = statistics.lse + at;
    load_column(lse, saved.lse);
    if (problem.sinks && !saved.lse_counts_sinks) {
        const A sink = per_head_value<A>(*problem.sinks, 0, head);
        std::transform(lse, lse + rows, lse, [sink](A x) { return merge_lse(x, sink).lse; });
    }
    if (saved.delta) {
        load_column(statistics.delta + at, *saved.delta);
        return;
    }
    const auto load_rows = [&](A* to, const ConstTensorView& from) {
        setup.kernels.load(to, scratch.value_width, rows_of(from, sequence.batch, head, query, rows), problem.value_dim,
                           A(1));
    };
    load_rows(scratch.value, *saved.out);
    load_rows(scratch.d_out, call.d_out);
    setup.kernels.dot_rows(statistics.delta + at, scratch.d_out, scratch.value, rows, problem.value_dim);
}

/// dQ of one tile of queries, and its part of dalibi.
template <class A>
void query_gradients(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t head, std::int64_t row,
                     std::int64_t rows, BackwardScratch<A>& scratch, const RowStatistics<A>& statistics,
                     double* dalibi) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    const std::int64_t width = scratch.key_width;
    load_query_side(setup, sequence, head, row, rows, scratch);
    std::fill_n(scratch.d_query, rows * width, A(0));
    double slope_gradient = 0.0;
    for_each_tile(problem, sequence, head, row, rows, [&](const Tile& tile) {
        if (!prepare_mask(problem, tile, scratch.scores)) {
            return;
        }
        load_key_side(setup, sequence, head / problem.group, tile.column, tile.columns, scratch);
        bias_gradient_tile(setup, tile, statistics, scratch);
        if (dalibi != nullptr) {
            for (std::int64_t r = 0; r < rows; ++r) {
                for (std::int64_t c = 0; c < tile.columns; ++c) {
                    const std::int64_t distance = std::abs(alibi_offset(tile) + r - c);
                    slope_gradient -=
                        static_cast<double>(scratch.d_scores[r * kKeyTile + c]) * static_cast<double>(distance);
                }
            }
        }
        product_gradient_tile(problem, tile, scratch);
        add_product(setup.kernels, scratch.d_query, {scratch.d_scores, kKeyTile, 1}, tile, scratch, scratch.key,
                    scratch.finite_key, rows, tile.columns, width);
    });
    if (dalibi != nullptr) {
        *dalibi = slope_gradient;
    }
    if (call.gradients.dq) {
        const TensorView& dq = *call.gradients.dq;
        const auto scale = static_cast<A>(problem.scale);
        setup.kernels.store(rows_of(dq, sequence.batch, head, sequence.query_start + row, rows), scratch.d_query,
                            problem.head_dim, &scale, 0);
    }
}

/// Where the queries of a key head's group gather dQ while tiles of keys pass by: dq itself where it has the type of
/// computation, else room of the task. Between two tiles sums are stored as they are, so their bits are those of sums
/// that were never put down.
template <class A>
struct QuerySums {
    TensorView view;  // empty: nobody gathers
    std::int64_t batch = 0;
    std::int64_t first_head = 0;
    std::int64_t first_query = 0;

    [[nodiscard]] explicit operator bool() const { return view.data != nullptr; }
    /// rows ← the sums of `count` queries.
    void load(const Kernels<A>& kernels, A* rows, std::int64_t head, std::int64_t row, std::int64_t count) const {
        const RowsOut sums = at(head, row, count);
        kernels.load(rows, kernels::padded(view.size(3)), {sums.data, sums.dtype, sums.stride, sums.rows}, view.size(3),
                     A(1));
    }
    /// The sums of `count` queries ← factor · rows.
    void store(const Kernels<A>& kernels, const A* rows, std::int64_t head, std::int64_t row, std::int64_t count,
               A factor) const {
        kernels.store(at(head, row, count), rows, view.size(3), &factor, 0);
    }

private:
    [[nodiscard]] RowsOut at(std::int64_t head, std::int64_t row, std::int64_t count) const {
        return rows_of(view, batch, head - first_head, first_query + row, count);
    }
};

/// Adds what the queries of one tile give to dK and dV of the keys loaded in scratch, and those keys to dQ.
template <class A>
void add_key_gradients(const BackwardSetup<A>& setup, const Tile& tile, BackwardScratch<A>& scratch,
                       const RowStatistics<A>& statistics, const QuerySums<A>& sums) {
    const Problem& problem = setup.call.problem;
    if (!prepare_mask(problem, tile, scratch.scores)) {
        return;
    }
    load_query_side(setup, *tile.sequence, tile.head, tile.row, tile.rows, scratch);
    bias_gradient_tile(setup, tile, statistics, scratch);
    product_gradient_tile(problem, tile, scratch);
    add_product(setup.kernels, scratch.d_value, {scratch.weights, 1, kKeyTile}, tile, scratch, scratch.d_out,
                scratch.finite_d_out, tile.columns, tile.rows, scratch.value_width);
    add_product(setup.kernels, scratch.d_key, {scratch.d_scores, 1, kKeyTile}, tile, scratch, scratch.query,
                scratch.finite_query, tile.columns, tile.rows, scratch.key_width);
    if (sums) {
        sums.load(setup.kernels, scratch.d_query, tile.head, tile.row, tile.rows);
        add_product(setup.kernels, scratch.d_query, {scratch.d_scores, kKeyTile, 1}, tile, scratch, scratch.key,
                    scratch.finite_key, tile.rows, tile.columns, scratch.key_width);
        sums.store(setup.kernels, scratch.d_query, tile.head, tile.row, tile.rows, A(1));
    }
}

/// dK and dV of one tile of keys, and its part of dQ where that is gathered.
template <class A>
void key_gradients(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head, std::int64_t column,
                   std::int64_t columns, BackwardScratch<A>& scratch, const RowStatistics<A>& statistics,
                   const QuerySums<A>& sums = {}) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    std::fill_n(scratch.d_key, columns * scratch.key_width, A(0));
    std::fill_n(scratch.d_value, columns * scratch.value_width, A(0));
    // Keys before first_key and from end_key on are nobody's: they are not read, and their gradients stay 0.
    const std::int64_t needed = std::min(columns, sequence.end_key - column);
    if (needed > 0 && column + columns > sequence.first_key) {
        load_key_side(setup, sequence, kv_head, column, needed, scratch);
        const RowRange rows = rows_for_keys(sequence, column, needed);
        for (std::int64_t head = kv_head * problem.group; head < (kv_head + 1) * problem.group; ++head) {
            for (std::int64_t row = rows.begin / kQueryTile * kQueryTile; row < rows.end; row += kQueryTile) {
                Tile tile{&sequence, head, row, std::min(kQueryTile, sequence.queries - row), column, needed, false};
                const Coverage covered = coverage(problem, tile);
                tile.full = covered == Coverage::full && !problem.masks_single_scores();
                if (covered != Coverage::none) {
                    add_key_gradients(setup, tile, scratch, statistics, sums);
                }
            }
        }
    }
    const auto write = [&](const std::optional<TensorView>& view, const A* values) {
        if (view) {
            const A one = A(1);  // the rows of q that dS met carried the scale already
            setup.kernels.store(rows_of(*view, sequence.batch, kv_head, sequence.key_start + column, columns), values,
                                view->size(3), &one, 0);
        }
    };
    write(call.gradients.dk, scratch.d_key);
    write(call.gradients.dv, scratch.d_value);
}

/// dQ, dK and dV of all that shares a key head: five products, dQ summed over tiles of keys in ascending order.
template <class A>
void head_gradients(const BackwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head,
                    BackwardScratch<A>& scratch, const RowStatistics<A>& statistics) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    const TensorView& dq = *call.gradients.dq;
    const std::int64_t first_head = kv_head * problem.group;
    const QuerySums<A> result{dq, sequence.batch, 0, sequence.query_start};
    const QuerySums<A> sums =
        scratch.query_sums == nullptr
            ? result
            : QuerySums<A>{view(scratch.query_sums, {1, problem.group, sequence.queries, problem.head_dim}), 0,
                           first_head, 0};
    const auto for_each_rows = [&](const auto& visit) {
        for (std::int64_t head = first_head; head < first_head + problem.group; ++head) {
            for (std::int64_t row = 0; row < sequence.queries; row += kQueryTile) {
                visit(head, row, std::min(kQueryTile, sequence.queries - row));
            }
        }
    };
    std::fill_n(scratch.d_query, kQueryTile * scratch.key_width, A(0));
    for_each_rows([&](std::int64_t head, std::int64_t row, std::int64_t rows) {
        sums.store(setup.kernels, scratch.d_query, head, row, rows, A(1));
    });
    for (std::int64_t column = 0; column < sequence.keys; column += kKeyTile) {
        key_gradients(setup, sequence, kv_head, column, std::min(kKeyTile, sequence.keys - column), scratch, statistics,
                      sums);
    }
    for_each_rows([&](std::int64_t head, std::int64_t row, std::int64_t rows) {
        sums.load(setup.kernels, scratch.d_query, head, row, rows);
        result.store(setup.kernels, scratch.d_query, head, row, rows, static_cast<A>(problem.scale));
    });
}

/// dsink = −Σ rows weight of the sink · delta: a sink's dP is 0.
template <class A>
void sink_gradient(const BackwardSetup<A>& setup, std::int64_t head, const RowStatistics<A>& statistics) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    const A sink = per_head_value<A>(*problem.sinks, 0, head);
    double sum = 0.0;
    for (std::int64_t b = 0; b < problem.batch && sink != kMinusInfinity<A>; ++b) {
        for (std::int64_t row = 0; row < problem.queries; ++row) {
            const std::int64_t at = (b * problem.heads + head) * problem.queries + row;
            sum -= static_cast<double>(exp_fast(sink - statistics.lse[at])) * static_cast<double>(statistics.delta[at]);
        }
    }
    const TensorView& dsinks = *call.gradients.dsinks;
    store(dsinks.at(0, head, 0, 0), dsinks.dtype, 1, &sum, 1);
}

/// Adds up the parts of dalibi in the order of tiles.
template <class A>
void write_slope_gradients(const BackwardCall& call, const RowStatistics<A>& statistics) {
    const Problem& problem = call.problem;
    const TensorView& dalibi = *call.gradients.dalibi;
    const std::int64_t tiles = tile_count(problem, Side::queries);
    for (std::int64_t b = 0; b < dalibi.size(0); ++b) {
        for (std::int64_t head = 0; head < problem.heads; ++head) {
            double sum = 0.0;
            for (std::int64_t number = 0; number < tiles; ++number) {
                const TokenTile tile = locate_tile(problem, Side::queries, number);
                if (tile.count > 0 && (dalibi.size(0) == 1 || tile.sequence.batch == b)) {
                    sum += statistics.dalibi[number * problem.heads + head];
                }
            }
            store(dalibi.at(b, head, 0, 0), dalibi.dtype, 1, &sum, 1);
        }
    }
}

template <class A>
void run_typed(const BackwardCall& call, const Plan& plan, const Runtime& runtime) {
    using Scratch = BackwardScratch<A>;
    const Problem& problem = call.problem;
    const BackwardSetup<A> setup(call, runtime);
    const AttentionGradients& gradients = call.gradients;
    const Workspace workspace(plan, gradients.workspace);
    Carver carver = workspace.shared();
    const RowStatistics<A> statistics = take_statistics<A>(call, carver);
    const auto for_each_item = [&](std::int64_t items, const auto& work) {
        run_items<Scratch>(setup, plan, workspace, runtime, items, work);
    };
    // Calls work(scratch, tile, number of tile, head) for all tiles of one side.
    const auto for_each_token_tile = [&](Side side, std::int64_t heads, const auto& work) {
        const std::int64_t items = tile_count(problem, side) * heads;
        for_each_item(items, [&](Scratch& scratch, std::int64_t item) {
            // Items come from the end. With a causal mask the last queries have the most work, and the first keys.
            const std::int64_t number = side == Side::queries ? item : items - 1 - item;
            const TokenTile tile = locate_tile(problem, side, number / heads);
            if (tile.count > 0) {
                work(scratch, tile, number / heads, number % heads);
            }
        });
    };

    for_each_token_tile(Side::queries, problem.heads,
                        [&](Scratch& scratch, const TokenTile& tile, std::int64_t, std::int64_t head) {
                            row_statistics(setup, tile.sequence, head, tile.begin, tile.count, scratch, statistics);
                        });
    if (setup.by_heads) {
        for_each_item(problem.sequences * problem.kv_heads, [&](Scratch& scratch, std::int64_t item) {
            head_gradients(setup, sequence_of(problem, item / problem.kv_heads), item % problem.kv_heads, scratch,
                           statistics);
        });
    }
    if (!setup.by_heads && (gradients.dk || gradients.dv)) {
        for_each_token_tile(Side::keys, problem.kv_heads,
                            [&](Scratch& scratch, const TokenTile& tile, std::int64_t, std::int64_t head) {
                                key_gradients(setup, tile.sequence, head, tile.begin, tile.count, scratch, statistics);
                            });
    }
    if (!setup.by_heads && (gradients.dq || gradients.dalibi)) {
        for_each_token_tile(
            Side::queries, problem.heads,
            [&](Scratch& scratch, const TokenTile& tile, std::int64_t number, std::int64_t head) {
                double* dalibi = gradients.dalibi ? statistics.dalibi + number * problem.heads + head : nullptr;
                query_gradients(setup, tile.sequence, head, tile.begin, tile.count, scratch, statistics, dalibi);
            });
    }
    if (gradients.dalibi) {
        write_slope_gradients(call, statistics);
    }
    if (gradients.dsinks) {
        for_each_item(problem.heads,
                      [&](const Scratch&, std::int64_t head) { sink_gradient(setup, head, statistics); });
    }
    if (gradients.dbias) {
        run_bias_pass(setup, plan, workspace, runtime, statistics);
    }
}

template <class A>
Plan plan_typed(const BackwardCall& call, const Runtime& runtime) {
    const Problem& problem = call.problem;
    const std::int64_t items = std::max(checked_multiply(tile_count(problem, Side::queries), problem.heads, "tiles"),
                                        checked_multiply(tile_count(problem, Side::keys), problem.heads, "tiles"));
    Plan plan;
    plan.tasks = task_count(problem, runtime, items);
    Carver shared;
    (void)take_statistics<A>(call, shared);
    plan.shared_bytes = shared.used();
    Carver counter;
    const BackwardScratch<A> scratch(BackwardSetup<A>(call, runtime), counter);
    plan.task_bytes = counter.used();
    return plan;
}

}  // namespace

Plan plan_backward(const BackwardCall& call, const Runtime& runtime) {
    return call.problem.compute == DType::f64 ? plan_typed<double>(call, runtime) : plan_typed<float>(call, runtime);
}

void run_backward(const BackwardCall& call, const Plan& plan, const Runtime& runtime) {
    call.problem.compute == DType::f64 ? run_typed<double>(call, plan, runtime) : run_typed<float>(call, plan, runtime);
}

}  // namespace qkv::detail
