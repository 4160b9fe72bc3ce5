#include "attention/backward.hpp"

#include <algorithm>

#include "attention/backward_panel.hpp"
#include "core/check.hpp"

namespace qkv::detail {

Panels::Panels(const BackwardCall& call, const Runtime& runtime) {
    const Problem& problem = call.problem;
    Sequence longest;
    for (std::int64_t index = 0;
         index < (problem.packed() ? problem.sequences : std::min<std::int64_t>(1, problem.sequences)); ++index) {
        const Sequence sequence = sequence_of(problem, index);
        longest = sequence.queries >= longest.queries ? sequence : longest;
        most_keys = std::max(most_keys, sequence.keys);
    }
    const std::int64_t threads = runtime.threads();
    chains = checked_multiply(problem.sequences, problem.kv_heads, "attention_backward: key heads");
    // Nobody waits for another panel where a user's function might wait for, or start, another task.
    by_chains = chains % threads == 0 || chains >= 4 * threads || problem.score_function.apply != nullptr;
    cut = row_cut(problem, 2 * problem.head_dim + problem.value_dim + kernels::kLanes, [&](const RowCut& rows) {
        // A panel must not pass a column before the one ahead has: along a band of w keys that one is
        // w / (w + tokens) of its way from the end when the next can begin.
        const std::int64_t band = std::min(longest.keys, longest.high - longest.low + 1);
        const std::int64_t panels = tiles_of(longest.queries, rows.tokens) * rows.head_pieces(problem);
        return by_chains || (chains * panels >= 4 * threads && rows.tokens * (threads - 1) <= band);
    });
    most_panels = count(problem, longest.queries);
}

namespace {

template <class A>
RowStatistics<A> take_statistics(const BackwardCall& call, Carver& carver) {
    const Problem& problem = call.problem;
    const std::int64_t rows =
        checked_multiply(checked_multiply(problem.batch, problem.heads, "attention_backward: rows"), problem.queries,
                         "attention_backward: rows");
    const std::int64_t tiles = call.gradients.dalibi ? tile_count(problem) * problem.heads : 0;
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
    const std::int64_t tiles = tile_count(problem);
    for (std::int64_t b = 0; b < dalibi.size(0); ++b) {
        for (std::int64_t head = 0; head < problem.heads; ++head) {
            double sum = 0.0;
            for (std::int64_t number = 0; number < tiles; ++number) {
                const TokenTile tile = locate_tile(problem, number);
                if (tile.count > 0 && (dalibi.size(0) == 1 || tile.sequence.batch == b)) {
                    sum += statistics.dalibi[number * problem.heads + head];
                }
            }
            store(dalibi.at(b, head, 0, 0), dalibi.dtype, 1, &sum, 1);
        }
    }
}

/// Room of the call that panels of one chain share: how far each has come, and sums that wait for the next one.
template <class A>
struct ChainRoom {
    ChainRoom(const BackwardSetup<A>& setup, Carver& carver)
        : progress(carver.take<std::atomic<std::int64_t>>(
              setup.panels.by_chains ? 0 : setup.panels.chains * setup.panels.most_panels)),
          sums(carver.take<A>(
              setup.gathers && !setup.panels.by_chains
                  ? checked_multiply(setup.panels.chains, sums_room(setup), "attention_backward: sums of dk and dv")
                  : 0)) {}

    std::atomic<std::int64_t>* progress;
    A* sums;
};

template <class A>
void run_panels(const BackwardSetup<A>& setup, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
                const RowStatistics<A>& statistics, const ChainRoom<A>& room) {
    const Problem& problem = setup.call.problem;
    const Panels& panels = setup.panels;
    const auto chain_of = [&](std::int64_t chain) {
        return Chain{sequence_of(problem, chain / problem.kv_heads), chain % problem.kv_heads};
    };
    if (panels.by_chains) {
        run_items<BackwardScratch<A>>(
            setup, plan, workspace, runtime, panels.chains, [&](BackwardScratch<A>& scratch, std::int64_t number) {
                const Chain chain = chain_of(number);
                const std::int64_t count = panels.count(problem, chain.sequence.queries);
                for (std::int64_t place = 0; place < count; ++place) {
                    panel_gradients(setup, chain, place, {}, scratch.chain_sums, scratch, statistics);
                }
            });
        return;
    }
    const bool adds_to_keys = setup.call.gradients.dk || setup.call.gradients.dv;
    const std::int64_t items = panels.chains * panels.most_panels;
    for (std::int64_t item = 0; item < items; ++item) {
        std::construct_at(room.progress + item, 0);
    }
    const auto work = [&](BackwardScratch<A>& scratch, std::int64_t item) {
        const std::int64_t place = item % panels.most_panels;
        const Chain chain = chain_of(item / panels.most_panels);
        if (place >= panels.count(problem, chain.sequence.queries)) {
            return;
        }
        A* sums = setup.gathers ? room.sums + item / panels.most_panels * sums_room(setup) : nullptr;
        const PanelTurn turn{place == 0 ? nullptr : room.progress + item - 1, room.progress + item};
        panel_gradients(setup, chain, place, adds_to_keys ? turn : PanelTurn{}, sums, scratch, statistics);
    };
    run_items<BackwardScratch<A>>(setup, plan, workspace, runtime, items, work, ItemOrder::ascending);
}

template <class A>
void run_typed(const BackwardCall& call, const Plan& plan, const Runtime& runtime) {
    const Problem& problem = call.problem;
    const BackwardSetup<A> setup(call, runtime);
    const AttentionGradients& gradients = call.gradients;
    const Workspace workspace(plan, gradients.workspace);
    Carver carver = workspace.shared();
    const RowStatistics<A> statistics = take_statistics<A>(call, carver);
    const ChainRoom<A> room(setup, carver);
    const auto for_each_item = [&](std::int64_t items, const auto& work) {
        run_items<BackwardScratch<A>>(setup, plan, workspace, runtime, items, work);
    };
    for_each_item(tile_count(problem) * problem.heads, [&](BackwardScratch<A>& scratch, std::int64_t item) {
        const TokenTile tile = locate_tile(problem, item / problem.heads);
        if (tile.count > 0) {
            row_statistics(setup, tile.sequence, item % problem.heads, tile.begin, tile.count, scratch, statistics);
        }
    });
    if (gradients.dq || gradients.dk || gradients.dv || gradients.dalibi || setup.writes_bias) {
        run_panels(setup, plan, workspace, runtime, statistics, room);
    }
    if (gradients.dalibi) {
        write_slope_gradients(call, statistics);
    }
    if (gradients.dsinks) {
        for_each_item(problem.heads,
                      [&](const BackwardScratch<A>&, std::int64_t head) { sink_gradient(setup, head, statistics); });
    }
    if (gradients.dbias && !setup.writes_bias) {
        run_bias_pass(setup, plan, workspace, runtime, statistics);
    }
}

template <class A>
Plan plan_typed(const BackwardCall& call, const Runtime& runtime) {
    const Problem& problem = call.problem;
    const BackwardSetup<A> setup(call, runtime);
    const std::int64_t items = std::max(checked_multiply(tile_count(problem), problem.heads, "tiles"),
                                        checked_multiply(setup.panels.chains, setup.panels.most_panels, "panels"));
    Plan plan;
    plan.tasks = task_count(problem, runtime, items);
    Carver shared;
    (void)take_statistics<A>(call, shared);
    (void)ChainRoom<A>(setup, shared);
    plan.shared_bytes = shared.used();
    Carver counter;
    const BackwardScratch<A> scratch(setup, counter);
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
