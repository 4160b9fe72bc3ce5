#include "attention/decode.hpp"

#include <algorithm>

#include "attention/forward_tile.hpp"
#include "core/check.hpp"

namespace qkv::detail {

namespace {

/// Spans of kSplitKeys positions that any row of the sequence may need: [first, first + count).
struct Splits {
    std::int64_t first = 0;
    std::int64_t count = 0;
};

Splits splits_of(const Sequence& sequence) {
    const KeyRange keys = needed_keys(sequence);
    if (keys.begin >= keys.end) {
        return {};
    }
    const std::int64_t first = keys.begin / kSplitKeys;
    return {first, tiles_of(keys.end, kSplitKeys) - first};
}

/// The rows of a key/value head: its query heads one after another, each with all queries of the sequence.
std::int64_t packed_rows(const Problem& problem, const Sequence& sequence) { return problem.group * sequence.queries; }

/// Tiles of rows of all key/value heads of a sequence.
std::int64_t row_tiles(const Problem& problem, const Sequence& sequence) {
    return problem.kv_heads * tiles_of(packed_rows(problem, sequence), kQueryTile);
}

struct RowTile {
    Sequence sequence;
    std::int64_t kv_head = 0;
    std::int64_t begin = 0;  // of the packed rows
    std::int64_t rows = 0;

    RowTile(const Problem& problem, std::int64_t index, std::int64_t number) : sequence(sequence_of(problem, index)) {
        const std::int64_t all = packed_rows(problem, sequence);
        const std::int64_t tiles = tiles_of(all, kQueryTile);
        kv_head = number / tiles;
        begin = number % tiles * kQueryTile;
        rows = std::min(kQueryTile, all - begin);
    }

    /// Calls visit(head, query, rows, place in the tile) for the rows of each head.
    template <class Visit>
    void for_each_head(const Problem& problem, const Visit& visit) const {
        for (std::int64_t at = 0; at < rows;) {
            const std::int64_t query = (begin + at) % sequence.queries;
            const std::int64_t count = std::min(rows - at, sequence.queries - query);
            visit(kv_head * problem.group + (begin + at) / sequence.queries, query, count, at);
            at += count;
        }
    }
};

/// The arrays of one tile of rows: those of a span, and what the spans before it came to.
template <class A>
struct DecodeScratch {
    DecodeScratch(const Problem& problem, Carver& carver)
        : span(problem, carver),
          context(carver.take<A>(kQueryTile * problem.value_dim)),
          states(carver.take<RowState<A>>(kQueryTile)) {}

    ForwardScratch<A> span;
    A* context;
    RowState<A>* states;
};

/// The scratch of the rows from `row` on.
template <class A>
ForwardScratch<A> rows_from(const Problem& problem, const ForwardScratch<A>& scratch, std::int64_t row) {
    ForwardScratch<A> rows = scratch;
    rows.query += row * problem.head_dim;
    rows.context += row * problem.value_dim;
    rows.weights += row * kKeyTile;
    rows.scores.scores += row * kKeyTile;
    rows.scores.bias += problem.mask.bias_view ? row * kKeyTile : 0;
    rows.scores.allowed += row * kKeyTile;
    rows.states += row;
    return rows;
}

/// Numbers of items before each sequence, and how many in all; and the memory of spans that wait to be merged.
template <class A>
struct DecodeShared {
    DecodeShared(const Problem& problem, const DecodePlan& plan, Carver& carver)
        : first_tile(carver.take<std::int64_t>(problem.sequences)),
          first_item(carver.take<std::int64_t>(plan.spread ? problem.sequences : 0)),
          states(carver.take<RowState<A>>(plan.spread ? plan.items * plan.rows : 0)),
          contexts(carver.take<A>(plan.spread ? plan.items * plan.rows * problem.value_dim : 0)) {}

    std::int64_t* first_tile;
    std::int64_t* first_item;
    RowState<A>* states;  // [items, rows]
    A* contexts;          // [items, rows, Dv]
};

template <class A>
class Decode {
public:
    Decode(const ForwardCall& call, const DecodePlan& plan, const Runtime& runtime)
        : call_(call),
          problem_(call.problem),
          plan_(plan),
          runtime_(runtime),
          workspace_(plan.plan, call.extras.workspace),
          shared_(share()) {}

    void run() const {
        if (!plan_.spread) {
            each(plan_.tiles, [&](const Scratch& scratch, std::int64_t number) {
                const RowTile tile = tile_at(number);
                clear(scratch.states, scratch.context, tile.rows);
                load_queries(tile, scratch.span);
                const Splits splits = splits_of(tile.sequence);
                for (std::int64_t split = 0; split < splits.count; ++split) {
                    attend(tile, splits.first + split, scratch.span);
                    merge(tile.rows, scratch, scratch.span.states, scratch.span.context);
                }
                finish(tile, scratch);
            });
            return;
        }
        each(plan_.items, [&](const Scratch& scratch, std::int64_t item) {
            const std::int64_t index = sequence_before(shared_.first_item, item);
            const Splits splits = splits_of(sequence_of(problem_, index));
            const std::int64_t number = item - shared_.first_item[index];
            const RowTile tile(problem_, index, number / splits.count);
            load_queries(tile, scratch.span);
            attend(tile, splits.first + number % splits.count, scratch.span);
            std::copy_n(scratch.span.states, tile.rows, shared_.states + item * plan_.rows);
            std::copy_n(scratch.span.context, tile.rows * problem_.value_dim, contexts_of(item));
        });
        each(plan_.tiles, [&](const Scratch& scratch, std::int64_t number) {
            const std::int64_t index = sequence_before(shared_.first_tile, number);
            const std::int64_t place = number - shared_.first_tile[index];
            const RowTile tile(problem_, index, place);
            clear(scratch.states, scratch.context, tile.rows);
            load_queries(tile, scratch.span);
            const Splits splits = splits_of(tile.sequence);
            for (std::int64_t split = 0; split < splits.count; ++split) {
                const std::int64_t item = shared_.first_item[index] + place * splits.count + split;
                merge(tile.rows, scratch, shared_.states + item * plan_.rows, contexts_of(item));
            }
            finish(tile, scratch);
        });
    }

private:
    using Scratch = DecodeScratch<A>;

    [[nodiscard]] DecodeShared<A> share() const {
        Carver carver = workspace_.shared();
        const DecodeShared<A> shared(problem_, plan_, carver);
        std::int64_t tiles = 0;
        std::int64_t items = 0;
        for (std::int64_t index = 0; index < problem_.sequences; ++index) {
            const Sequence sequence = sequence_of(problem_, index);
            shared.first_tile[index] = tiles;
            tiles += row_tiles(problem_, sequence);
            if (plan_.spread) {
                shared.first_item[index] = items;
                items += row_tiles(problem_, sequence) * splits_of(sequence).count;
            }
        }
        return shared;
    }

    template <class Work>
    void each(std::int64_t items, const Work& work) const {
        run_items<Scratch>(problem_, plan_.plan, workspace_, runtime_, items, work);
    }

    /// The last sequence whose first number is not above `number`: of those that start there all but one are empty.
    [[nodiscard]] std::int64_t sequence_before(const std::int64_t* first, std::int64_t number) const {
        return std::upper_bound(first, first + problem_.sequences, number) - first - 1;
    }
    [[nodiscard]] RowTile tile_at(std::int64_t number) const {
        const std::int64_t index = sequence_before(shared_.first_tile, number);
        return RowTile(problem_, index, number - shared_.first_tile[index]);
    }
    [[nodiscard]] A* contexts_of(std::int64_t item) const {
        return shared_.contexts + item * plan_.rows * problem_.value_dim;
    }

    void clear(RowState<A>* states, A* context, std::int64_t rows) const {
        std::fill_n(states, rows, RowState<A>{});
        std::fill_n(context, rows * problem_.value_dim, A(0));
    }

    void load_queries(const RowTile& tile, const ForwardScratch<A>& scratch) const {
        tile.for_each_head(problem_, [&](std::int64_t head, std::int64_t query, std::int64_t rows, std::int64_t at) {
            load_rows(scratch.query + at * problem_.head_dim, problem_.q, tile.sequence.batch, head,
                      tile.sequence.query_start + query, rows);
        });
    }

    /// One span by itself: scratch.states and scratch.context.
    void attend(const RowTile& rows, std::int64_t split, const ForwardScratch<A>& scratch) const {
        clear(scratch.states, scratch.context, rows.rows);
        const KeyRange needed = needed_keys(rows.sequence);
        const std::int64_t end = std::min((split + 1) * kSplitKeys, needed.end);
        for (std::int64_t column = std::max(split * kSplitKeys, needed.begin / kKeyTile * kKeyTile); column < end;
             column += kKeyTile) {
            attend_tile(rows, column, std::min(kKeyTile, end - column), scratch);
        }
    }

    void attend_tile(const RowTile& rows, std::int64_t column, std::int64_t columns,
                     const ForwardScratch<A>& scratch) const {
        bool loaded = false;
        bool finite = true;
        rows.for_each_head(problem_, [&](std::int64_t head, std::int64_t query, std::int64_t count, std::int64_t at) {
            Tile tile{&rows.sequence, head, query, count, column, columns, false};
            const Coverage covered = coverage(problem_, tile);
            tile.full = covered == Coverage::full && !problem_.masks_single_scores();
            const ForwardScratch<A> own = rows_from(problem_, scratch, at);
            if (covered == Coverage::none || !prepare_mask(problem_, tile, own.scores)) {
                return;
            }
            if (!loaded) {  // by the first head that needs them
                load_keys(scratch.key, problem_, rows.sequence, rows.kv_head, column, columns);
                transpose(scratch.key_transposed, scratch.key, columns, problem_.head_dim);
                load_values(scratch.value, problem_, rows.sequence, rows.kv_head, column, columns);
                finite = all_finite(scratch.value, columns * problem_.value_dim);
                loaded = true;
            }
            multiply_tile(own.scores.scores, own.query, scratch.key_transposed, count, problem_.head_dim);
            finish_scores(problem_, tile, own.scores);
            weigh_tile(problem_, tile, own);
            add_values(problem_, tile, own, finite);
        });
    }

    void merge(std::int64_t rows, const Scratch& scratch, const RowState<A>* states, const A* contexts) const {
        const std::int64_t width = problem_.value_dim;
        for (std::int64_t r = 0; r < rows; ++r) {
            if (states[r].sum == A(0)) {
                continue;  // nothing of this span was attended to
            }
            const Shares<A> shares = merge_states(scratch.states[r], states[r]);
            A* __restrict__ context = scratch.context + r * width;
            const A* part = contexts + r * width;
            for (std::int64_t d = 0; d < width; ++d) {
                context[d] = context[d] * shares.mine + part[d] * shares.other;
            }
        }
    }

    void finish(const RowTile& tile, const Scratch& scratch) const {
        ForwardScratch<A> merged = scratch.span;
        merged.context = scratch.context;
        merged.states = scratch.states;
        const bool records = call_.extras.weights || call_.extras.scores;
        tile.for_each_head(problem_, [&](std::int64_t head, std::int64_t query, std::int64_t rows, std::int64_t at) {
            const ForwardScratch<A> own = rows_from(problem_, merged, at);
            write_rows(call_, tile.sequence, head, query, rows, own);
            if (records) {
                record_rows(call_, tile.sequence, head, query, rows, own);
            }
        });
    }

    const ForwardCall& call_;
    const Problem& problem_;
    const DecodePlan& plan_;
    const Runtime& runtime_;
    Workspace workspace_;
    DecodeShared<A> shared_;
};

template <class A>
void count_bytes(const Problem& problem, DecodePlan& plan) {
    Carver task;
    const DecodeScratch<A> scratch(problem, task);
    plan.plan.task_bytes = task.used();
    Carver shared;
    const DecodeShared<A> arrays(problem, plan, shared);
    plan.plan.shared_bytes = shared.used();
}

}  // namespace

DecodePlan plan_decode(const ForwardCall& call, const Runtime& runtime) {
    const Problem& problem = call.problem;
    DecodePlan plan;
    for (std::int64_t index = 0; index < problem.sequences; ++index) {
        const Sequence sequence = sequence_of(problem, index);
        const std::int64_t tiles = row_tiles(problem, sequence);
        plan.tiles += tiles;
        plan.items += tiles * splits_of(sequence).count;
        plan.rows = std::max(plan.rows, std::min(kQueryTile, packed_rows(problem, sequence)));
    }
    // Spans are worth keeping apart only where tiles of rows are too few for the threads: then the memory for them is
    // bounded by threads and keys.
    const std::int64_t tasks = task_count(problem, runtime, plan.items);
    plan.spread = tasks > plan.tiles;
    plan.items = plan.spread ? plan.items : plan.tiles;
    plan.plan.tasks = std::max<std::int64_t>(1, std::min(tasks, plan.items));
    problem.compute == DType::f64 ? count_bytes<double>(problem, plan) : count_bytes<float>(problem, plan);
    return plan;
}

void run_decode(const ForwardCall& call, const DecodePlan& plan, const Runtime& runtime) {
    call.problem.compute == DType::f64 ? Decode<double>(call, plan, runtime).run()
                                       : Decode<float>(call, plan, runtime).run();
}

}  // namespace qkv::detail
