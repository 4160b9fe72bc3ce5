#include "attention/forward.hpp"

#include "attention/forward_tile.hpp"
#include "core/check.hpp"

namespace qkv::detail {

namespace {

/// context += weights · value over the tile's keys.
template <class A>
void add_values(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch) {
    const std::int64_t width = problem.value_dim;
    load_values(scratch.value, problem, *tile.sequence, tile.head / problem.group, tile.column, tile.columns);
    const Left<A> weights{scratch.weights, kKeyTile, 1};
    if (tile.full || all_finite(scratch.value, tile.columns * width)) {
        multiply_add(scratch.context, weights, scratch.value, tile.rows, tile.columns, width);
    } else {
        multiply_add_unmasked(scratch.context, weights, scratch.scores.scores, scratch.value, tile.rows, tile.columns,
                              width);
    }
}

template <class A>
void attend(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch) {
    if (!score_tile(problem, tile, scratch)) {
        return;
    }
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
    add_values(problem, tile, scratch);
}

/// The sink takes part in the softmax as one more score without a value. Returns what the context shrinks by.
template <class A>
[[nodiscard]] A take_sink(RowState<A>& state, A sink) {
    if (sink == kMinusInfinity<A>) {
        return A(1);
    }
    const A max = sink > state.max ? sink : state.max;
    const A shrink = exp_fast(state.max - max);
    state.sum = state.sum * shrink + exp_fast(sink - max);
    state.max = max;
    return shrink;
}

/// Divides by the row sums and writes context and lse.
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

template <class A>
void forward_rows(const ForwardCall& call, const Sequence& sequence, std::int64_t head, std::int64_t row,
                  std::int64_t rows, const ForwardScratch<A>& scratch) {
    const Problem& problem = call.problem;
    load_rows(scratch.query, problem.q, sequence.batch, head, sequence.query_start + row, rows);
    std::fill_n(scratch.context, rows * problem.value_dim, A(0));
    std::fill_n(scratch.states, rows, RowState<A>{});
    for_each_tile(problem, sequence, head, row, rows, [&](const Tile& tile) { attend(problem, tile, scratch); });
    write_rows(call, sequence, head, row, rows, scratch);
    if (call.extras.weights || call.extras.scores) {
        record_rows(call, sequence, head, row, rows, scratch);
    }
}

std::int64_t item_count(const Problem& problem) {
    return checked_multiply(tile_count(problem, Side::queries), problem.heads, "attention: tiles of queries");
}

template <class A>
void run_typed(const ForwardCall& call, const Plan& plan, const Runtime& runtime) {
    const Workspace workspace(plan, call.extras.workspace);
    const std::int64_t items = item_count(call.problem);
    const auto work = [&](const ForwardScratch<A>& scratch, std::int64_t item) {
        // From the end: the last queries of a causal mask have the most keys, and short items fill up the finish.
        const std::int64_t number = items - 1 - item;
        const TokenTile tile = locate_tile(call.problem, Side::queries, number / call.problem.heads);
        if (tile.count > 0) {
            forward_rows(call, tile.sequence, number % call.problem.heads, tile.begin, tile.count, scratch);
        }
    };
    run_items<ForwardScratch<A>>(call.problem, plan, workspace, runtime, items, work);
}

template <class A>
std::size_t scratch_bytes(const Problem& problem) {
    Carver counter;
    const ForwardScratch<A> scratch(problem, counter);
    return counter.used();
}

}  // namespace

Plan plan_forward(const ForwardCall& call, const Runtime& runtime) {
    const Problem& problem = call.problem;
    Plan plan;
    plan.tasks = task_count(problem, runtime, item_count(problem));
    plan.task_bytes = problem.compute == DType::f64 ? scratch_bytes<double>(problem) : scratch_bytes<float>(problem);
    return plan;
}

void run_forward(const ForwardCall& call, const Plan& plan, const Runtime& runtime) {
    call.problem.compute == DType::f64 ? run_typed<double>(call, plan, runtime) : run_typed<float>(call, plan, runtime);
}

}  // namespace qkv::detail
