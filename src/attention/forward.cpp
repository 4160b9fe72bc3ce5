#include "attention/forward.hpp"

#include "attention/forward_tile.hpp"
#include "core/check.hpp"

namespace qkv::detail {

namespace {

template <class A>
void attend(const Problem& problem, const Tile& tile, const ForwardScratch<A>& scratch) {
    if (!score_tile(problem, tile, scratch)) {
        return;
    }
    weigh_tile(problem, tile, scratch);
    load_values(scratch.value, problem, *tile.sequence, tile.head / problem.group, tile.column, tile.columns);
    add_values(problem, tile, scratch, all_finite(scratch.value, tile.columns * problem.value_dim));
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
