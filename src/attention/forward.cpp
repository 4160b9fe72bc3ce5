#include "attention/forward.hpp"

#include <algorithm>

#include "attention/forward_tile.hpp"
#include "core/check.hpp"

namespace qkv::detail {

namespace {

/// Takes a tile of packed keys into a tile of rows.
template <class A>
void attend(const ForwardSetup<A>& setup, const RowTile<A>& rows, KeyTile<A>& keys, const Tile& tile,
            const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    multiply_query_key(setup, rows, keys, scratch);
    finish_scores(problem, setup.kernels, tile, scratch.scores, setup.product_scale);
    if (problem.dropout) {
        dropout_factors(setup.kernels, problem, tile, scratch.factors);
    }
    take_scores(setup, rows, keys, tile.full && tile.columns == keys.columns, scratch);
}

/// The tile of scores where these rows meet these keys, its mask in `scores`; false when they need none of them.
template <class A>
[[nodiscard]] bool meet(const ForwardSetup<A>& setup, const Sequence& sequence, const RowTile<A>& rows,
                        std::int64_t column, const ScoreScratch<A>& scores, Tile& tile) {
    const Problem& problem = setup.call.problem;
    if (column + kKeyTile <= rows.needed.begin || column >= rows.needed.end) {
        return false;
    }
    const std::int64_t queries = rows.rows / rows.heads;
    tile = {&sequence, rows.head, rows.row, queries, column, std::min(kKeyTile, rows.needed.end - column), false};
    const Coverage covered = coverage(problem, tile);
    tile.full = covered == Coverage::full && !problem.masks_single_scores();
    if (covered == Coverage::none || !prepare_mask(problem, setup.kernels, tile, scores)) {
        return false;
    }
    if (rows.heads > 1 && !tile.full) {  // what one may see, all may
        std::fill_n(scores.allowed + 1, rows.rows - 1, *scores.allowed);
    }
    tile.rows = rows.rows;
    return true;
}

/// The row tiles of an item, ready for their first keys; how many.
template <class A>
std::int64_t start_rows(const ForwardSetup<A>& setup, const TokenTile& tokens, std::int64_t first_head,
                        std::int64_t heads, const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Sequence& sequence = tokens.sequence;
    std::int64_t count = 0;
    const auto start = [&](std::int64_t head, std::int64_t row, const Rows& from, std::int64_t stacked) {
        const std::int64_t at = count * kQueryTile;
        RowTile<A>& tile = scratch.tiles[count];
        Rows query = from;
        if (setup.kernels.scales_queries || !setup.kernels.packs(from, problem.head_dim)) {
            A* room = scratch.query + (setup.kernels.scales_queries ? at : 0) * scratch.key_width;
            setup.kernels.load(room, scratch.key_width, from, problem.head_dim, setup.query_scale);
            query = kernels::loaded(room, from.rows, problem.head_dim);
        }
        tile = {head,
                row,
                from.rows,
                needed_keys(sequence, row, from.rows / stacked),
                setup.kernels.pack_queries(scratch.packed_query + count * scratch.query_room, query, problem.head_dim),
                scratch.context + at * scratch.value_width,
                scratch.reference + at,
                scratch.sums + at * kernels::kLanes,
                stacked};
        clear_rows(tile, scratch);
        ++count;
    };
    if (stacks_heads(setup.call)) {
        for (std::int64_t head = first_head; head < first_head + heads; head += kQueryTile) {
            Rows rows = rows_of(problem.q, sequence.batch, head, sequence.query_start + tokens.begin,
                                std::min(kQueryTile, first_head + heads - head));
            rows.stride = problem.q.strides[1];
            start(head, tokens.begin, rows, rows.rows);
        }
        return count;
    }
    for (std::int64_t row = tokens.begin; row < tokens.begin + tokens.count; row += kQueryTile) {
        const std::int64_t rows = std::min(kQueryTile, tokens.begin + tokens.count - row);
        for (std::int64_t head = first_head; head < first_head + heads; ++head) {
            start(head, row, rows_of(problem.q, sequence.batch, head, sequence.query_start + row, rows), 1);
        }
    }
    return count;
}

/// Tiles of keys that a tile of rows takes at once.
template <class A>
class Run {
public:
    Run(const ForwardSetup<A>& setup, const RowTile<A>& rows, const ForwardScratch<A>& scratch)
        : setup_(setup), rows_(rows), scratch_(scratch) {}

    /// Where the mask of the next tile is to be.
    [[nodiscard]] ScoreScratch<A> next_scores() const { return scratch_.scores_of(count_); }

    void add(const KeyTile<A>& keys, const Tile& tile) {
        kernels::AttendedKeys<A>& attended = scratch_.attended[count_];
        attended = {keys.keys, keys.values, {}, {}, keys.columns, keys.ahead};
        if (rows_.heads == 1) {  // else all rows are of one query
            attended.columns = columns_met(setup_.call.problem, tile, keys.columns);
        }
        if (keys.keys == nullptr) {  // of a tensor: one run
            attended.stored_keys =
                key_rows(setup_.call.problem, *keys.sequence, keys.kv_head, keys.column, keys.columns);
        }
        if (keys.values == nullptr) {
            for_each_value_run(setup_, keys, scratch_, [&](const Rows& run) { attended.stored_values = run; });
        }
        scratch_.attended_tiles[count_++] = tile;
        finished_ = finished_ && tile.full && tile.columns == kKeyTile;
        if (count_ == setup_.kernels.attended_scores) {
            take();
        }
    }
    /// Whether there was something to take.
    bool take() {
        const bool any = count_ > 0;
        if (any) {
            const Problem& problem = setup_.call.problem;
            setup_.kernels.attend(
                {rows_.query,
                 {rows_.reference, rows_.sums},
                 rows_.context,
                 {plain_scores(problem) && finished_ && setup_.product_scale == A(1) ? nullptr : finish, this},
                 setup_.softmax_scale,
                 rows_.rows,
                 problem.head_dim,
                 problem.value_dim},
                scratch_.attended, count_, scratch_.scores.scores);
            count_ = 0;
            finished_ = true;
        }
        return any;
    }

private:
    static void finish(void* with, std::int64_t number, A* products) {
        const Run& run = *static_cast<const Run*>(with);
        ScoreScratch<A> scores = run.scratch_.scores_of(number);
        scores.scores = products;
        finish_scores(run.setup_.call.problem, run.setup_.kernels, run.scratch_.attended_tiles[number], scores,
                      run.setup_.product_scale);
    }

    const ForwardSetup<A>& setup_;
    const RowTile<A>& rows_;
    const ForwardScratch<A>& scratch_;
    std::int64_t count_ = 0;
    bool finished_ = true;  // nothing of what is in it is masked
};

/// Whether no row of the tile can meet a value through a masked score that would not be 0 there.
template <class A>
[[nodiscard]] bool multiplies_all(const ForwardSetup<A>& setup, KeyTile<A>& keys, const Tile& tile,
                                  const ForwardScratch<A>& scratch) {
    if (tile.full && tile.columns == keys.columns) {
        return true;
    }
    if (!keys.loaded_values) {
        load_values(setup, keys, scratch);
    }
    return keys.finite_values;
}

/// Asks for what `meet` will read of the tile.
template <class A>
void fetch_mask(const ForwardSetup<A>& setup, const Sequence& sequence, const RowTile<A>& rows, std::int64_t column) {
    const std::int64_t columns = std::min(kKeyTile, rows.needed.end - column);
    if (columns > 0) {
        fetch_mask(setup.call.problem,
                   {&sequence, rows.head, rows.row, rows.rows / rows.heads, column, columns, false});
    }
}

/// One item: panels of keys pass by, in ascending order, and each row tile takes the tiles it needs.
template <class A>
void forward_item(const ForwardSetup<A>& setup, const TokenTile& tokens, std::int64_t first_head, std::int64_t heads,
                  const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const Sequence& sequence = tokens.sequence;
    const std::span row_tiles(scratch.tiles,
                              static_cast<std::size_t>(start_rows(setup, tokens, first_head, heads, scratch)));
    const std::int64_t begin =
        std::ranges::min(row_tiles, {}, [](const RowTile<A>& rows) { return rows.needed.begin; }).needed.begin;
    const std::int64_t end =
        std::ranges::max(row_tiles, {}, [](const RowTile<A>& rows) { return rows.needed.end; }).needed.end;
    const std::int64_t kv_head = first_head / problem.group;
    KeyPass pass(setup.kernels, row_tiles.size() == 1 ? row_tiles.front().rows : 0, end);
    for (std::int64_t panel = begin / kKeyTile * kKeyTile; panel < end; panel += kPanelTiles * kKeyTile) {
        KeyTile<A>* const tiles = scratch.key_tiles;
        std::fill_n(tiles, std::min(kPanelTiles, tiles_of(end - panel, kKeyTile)), KeyTile<A>{});
        for (const RowTile<A>& rows : row_tiles) {
            Run<A> run(setup, rows, scratch);
            std::int64_t column = panel;
            for (std::int64_t place = 0; place < kPanelTiles && column < end; ++place, column += kKeyTile) {
                const bool next_rows = place + 1 == kPanelTiles && &rows != &row_tiles.back();
                fetch_mask(setup, sequence, next_rows ? (&rows)[1] : rows, next_rows ? panel : column + kKeyTile);
                Tile tile;
                if (meet(setup, sequence, rows, column, run.next_scores(), tile)) {
                    KeyTile<A>& keys = tiles[place];
                    if (!keys.packed) {  // by the first rows that need them
                        keys.column = column;
                        keys.columns = std::min(kKeyTile, end - column);
                        keys.place = place;
                        pack(setup, sequence, kv_head, pass, keys, scratch);
                    }
                    if (setup.attends_at_once && multiplies_all(setup, keys, tile, scratch)) {
                        run.add(keys, tile);
                    } else {
                        if (run.take()) {
                            (void)meet(setup, sequence, rows, column, scratch.scores, tile);  // where attend looks
                        }
                        attend(setup, rows, keys, tile, scratch);
                    }
                }
            }
            run.take();
        }
    }
    for (const RowTile<A>& rows : row_tiles) {
        const std::int64_t queries = rows.rows / rows.heads;
        for (std::int64_t head = 0; head < rows.heads; ++head) {
            RowTile<A> own = rows;
            own.head += head;
            own.rows = queries;
            own.context += head * queries * scratch.value_width;
            own.reference += head * queries;
            own.sums += head * queries * kernels::kLanes;
            write_rows(setup, sequence, own, scratch);
        }
    }
}

std::int64_t item_count(const Problem& problem, const RowCut& cut) {
    return checked_multiply(
        checked_multiply(tile_count(problem, cut.tokens), problem.kv_heads, "attention: tiles of queries"),
        cut.head_pieces(problem), "attention: tiles of queries");
}

RowCut cut_for(const ForwardCall& call, const Runtime& runtime) {
    const Problem& problem = call.problem;
    const auto gives = [&](const RowCut& cut, std::int64_t items_per_thread) {
        return item_count(problem, cut) >= items_per_thread * runtime.threads();
    };
    if (stacks_heads(call)) {
        // All heads read the same keys: they are parted only for threads that had nothing to do.
        RowCut cut{kQueryTile, problem.group, true};
        while (cut.heads > 1 && !gives(cut, 1)) {
            cut.heads = (cut.heads + 1) / 2;
        }
        return cut;
    }
    return row_cut(problem, problem.head_dim + problem.value_dim + kernels::kLanes,
                   [&](const RowCut& cut) { return gives(cut, 4); });
}

template <class A>
void run_typed(const ForwardCall& call, const Plan& plan, const Runtime& runtime) {
    const Problem& problem = call.problem;
    const ForwardSetup<A> setup(call, runtime, cut_for(call, runtime));
    const Workspace workspace(plan, call.extras.workspace);
    const std::int64_t items = item_count(problem, setup.cut);
    const std::int64_t per_kv_head = setup.cut.head_pieces(problem);
    const auto work = [&](const ForwardScratch<A>& scratch, std::int64_t number) {
        const TokenTile tokens = locate_tile(problem, number / per_kv_head / problem.kv_heads, setup.cut.tokens);
        if (tokens.count > 0) {
            const std::int64_t in_group = number % per_kv_head * setup.cut.heads;
            const std::int64_t kv_head = number / per_kv_head % problem.kv_heads;
            forward_item(setup, tokens, kv_head * problem.group + in_group,
                         std::min(setup.cut.heads, problem.group - in_group), scratch);
        }
    };
    run_items<ForwardScratch<A>>(setup, plan, workspace, runtime, items, work);
}

template <class A>
Plan plan_typed(const ForwardCall& call, const Runtime& runtime) {
    const ForwardSetup<A> setup(call, runtime, cut_for(call, runtime));
    Carver counter;
    const ForwardScratch<A> scratch(setup, counter);
    Plan plan;
    plan.tasks = task_count(call.problem, runtime, item_count(call.problem, setup.cut));
    plan.task_bytes = counter.used();
    return plan;
}

}  // namespace

Plan plan_forward(const ForwardCall& call, const Runtime& runtime) {
    return call.problem.compute == DType::f64 ? plan_typed<double>(call, runtime) : plan_typed<float>(call, runtime);
}

void run_forward(const ForwardCall& call, const Plan& plan, const Runtime& runtime) {
    call.problem.compute == DType::f64 ? run_typed<double>(call, plan, runtime) : run_typed<float>(call, plan, runtime);
}

}  // namespace qkv::detail
