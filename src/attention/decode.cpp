#include "attention/decode.hpp"

#include <algorithm>
#include <cassert>

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
    const KeyRange keys = needed_keys(sequence, 0, sequence.queries);
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

/// A tile of packed rows.
struct PackedTile {
    Sequence sequence;
    std::int64_t kv_head = 0;
    std::int64_t begin = 0;  // of the packed rows
    std::int64_t rows = 0;

    PackedTile(const Problem& problem, std::int64_t index, std::int64_t number)
        : sequence(sequence_of(problem, index)) {
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
    DecodeScratch(const ForwardSetup<A>& setup, Carver& carver)
        : span(setup, carver),
          context(carver.take<A>(kQueryTile * span.value_width)),
          reference(carver.take<A>(kQueryTile)),
          sums(carver.take<A>(kQueryTile * kernels::kLanes)) {}

    ForwardScratch<A> span;
    A* context;
    A* reference;
    A* sums;

    /// Of all packed rows, as the kernels want them.
    [[nodiscard]] const A* query() const { return span.query_room > 0 ? span.packed_query : span.query; }
    [[nodiscard]] RowTile<A> span_rows(std::int64_t rows) const {
        return {0, 0, rows, {}, query(), span.context, span.reference, span.sums};
    }
    [[nodiscard]] RowTile<A> merged_rows(std::int64_t rows) const {
        return {0, 0, rows, {}, query(), context, reference, sums};
    }
};

/// Numbers of items before each sequence, and how many in all; and the memory of spans that wait to be merged.
template <class A>
struct DecodeShared {
    DecodeShared(const Problem& problem, const DecodePlan& plan, Carver& carver)
        : width(kernels::padded(problem.value_dim)),
          first_tile(carver.take<std::int64_t>(problem.sequences)),
          first_item(carver.take<std::int64_t>(plan.spread ? problem.sequences : 0)),
          states(carver.take<RowState<A>>(plan.spread ? plan.items * plan.rows : 0)),
          contexts(carver.take<A>(plan.spread ? plan.items * plan.rows * width : 0)) {}

    std::int64_t width;  // padded Dv
    std::int64_t* first_tile;
    std::int64_t* first_item;
    RowState<A>* states;  // [items, rows]
    A* contexts;          // [items, rows, width]
};

template <class A>
class Decode {
public:
    Decode(const ForwardCall& call, const DecodePlan& plan, const Runtime& runtime)
        : call_(call),
          problem_(call.problem),
          plan_(plan),
          setup_(call, runtime, {}),
          alike_(tells_no_heads(problem_)),
          runtime_(runtime),
          workspace_(plan.plan, call.extras.workspace),
          shared_(share()) {}

    void run() const {
        if (!plan_.spread) {
            each(plan_.tiles, [&](const Scratch& scratch, std::int64_t number) {
                const PackedTile tile = tile_at(number);
                const RowTile<A> span = scratch.span_rows(tile.rows);
                clear_rows(scratch.merged_rows(tile.rows), scratch.span);
                load_queries(tile, scratch.span);
                const Splits splits = splits_of(tile.sequence);
                KeyPass pass(setup_.kernels, tile.rows, keys_of(tile, splits.first + splits.count - 1).end);
                for (std::int64_t split = 0; split < splits.count; ++split) {
                    attend(tile, splits.first + split, pass, scratch);
                    for (std::int64_t r = 0; r < tile.rows; ++r) {
                        merge(scratch, r, span.state(r), span.context + r * shared_.width);
                    }
                }
                finish(tile, scratch);
            });
            return;
        }
        each(plan_.items, [&](const Scratch& scratch, std::int64_t item) {
            const std::int64_t index = sequence_before(shared_.first_item, item);
            const Splits splits = splits_of(sequence_of(problem_, index));
            assert(splits.count > 0);  // the item is one of them
            const std::int64_t number = item - shared_.first_item[index];
            const PackedTile tile(problem_, index, number / splits.count);
            const RowTile<A> span = scratch.span_rows(tile.rows);
            load_queries(tile, scratch.span);
            const std::int64_t split = splits.first + number % splits.count;
            KeyPass pass(setup_.kernels, tile.rows, keys_of(tile, split).end);
            attend(tile, split, pass, scratch);
            for (std::int64_t r = 0; r < tile.rows; ++r) {
                shared_.states[item * plan_.rows + r] = span.state(r);
            }
            std::copy_n(span.context, tile.rows * shared_.width, contexts_of(item));
        });
        each(plan_.tiles, [&](const Scratch& scratch, std::int64_t number) {
            const std::int64_t index = sequence_before(shared_.first_tile, number);
            const std::int64_t place = number - shared_.first_tile[index];
            const PackedTile tile(problem_, index, place);
            clear_rows(scratch.merged_rows(tile.rows), scratch.span);
            load_queries(tile, scratch.span);
            const Splits splits = splits_of(tile.sequence);
            for (std::int64_t split = 0; split < splits.count; ++split) {
                const std::int64_t item = shared_.first_item[index] + place * splits.count + split;
                for (std::int64_t r = 0; r < tile.rows; ++r) {
                    merge(scratch, r, shared_.states[item * plan_.rows + r], contexts_of(item) + r * shared_.width);
                }
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
        run_items<Scratch>(setup_, plan_.plan, workspace_, runtime_, items, work);
    }

    /// The last sequence whose first number is not above `number`: of those that start there all but one are empty.
    [[nodiscard]] std::int64_t sequence_before(const std::int64_t* first, std::int64_t number) const {
        return std::upper_bound(first, first + problem_.sequences, number) - first - 1;
    }
    [[nodiscard]] PackedTile tile_at(std::int64_t number) const {
        const std::int64_t index = sequence_before(shared_.first_tile, number);
        return PackedTile(problem_, index, number - shared_.first_tile[index]);
    }
    [[nodiscard]] A* contexts_of(std::int64_t item) const {
        return shared_.contexts + item * plan_.rows * shared_.width;
    }

    void load_queries(const PackedTile& tile, const ForwardScratch<A>& scratch) const {
        tile.for_each_head(problem_, [&](std::int64_t head, std::int64_t query, std::int64_t rows, std::int64_t at) {
            setup_.kernels.load(scratch.query + at * scratch.key_width, scratch.key_width,
                                rows_of(problem_.q, tile.sequence.batch, head, tile.sequence.query_start + query, rows),
                                problem_.head_dim, setup_.query_scale);
        });
        (void)pack_queries(tile.rows, 0, scratch);
    }

    [[nodiscard]] const A* pack_queries(std::int64_t rows, std::int64_t from, const ForwardScratch<A>& scratch) const {
        return setup_.kernels.pack_queries(
            scratch.packed_query, kernels::loaded(scratch.query + from * scratch.key_width, rows, problem_.head_dim),
            problem_.head_dim);
    }

    /// Of a span, in whole tiles from its first on.
    [[nodiscard]] static KeyRange keys_of(const PackedTile& rows, std::int64_t split) {
        const KeyRange needed = needed_keys(rows.sequence, 0, rows.sequence.queries);
        return {std::max(split * kSplitKeys, needed.begin / kKeyTile * kKeyTile),
                std::min((split + 1) * kSplitKeys, needed.end)};
    }

    /// One span by itself.
    void attend(const PackedTile& rows, std::int64_t split, KeyPass& pass, const Scratch& scratch) const {
        clear_rows(scratch.span_rows(rows.rows), scratch.span);
        const KeyRange keys = keys_of(rows, split);
        for (std::int64_t column = keys.begin; column < keys.end; column += kKeyTile) {
            attend_tile(rows, {column, std::min(kKeyTile, keys.end - column)}, pass, scratch);
        }
    }

    [[nodiscard]] ScoreScratch<A> scores_from(const ForwardScratch<A>& span, std::int64_t row) const {
        return {span.scores.scores + row * kKeyTile,
                problem_.mask.bias_view ? span.scores.bias + row * kKeyTile : nullptr, span.scores.allowed + row};
    }

    /// Calls visit(head, query, queries, rows, place in the tile) for the rows of each head, or once for those of all
    /// heads: of one query each, with nothing that tells heads apart.
    template <class Visit>
    void for_each_part(const PackedTile& packed, const Visit& visit) const {
        if (alike_ && packed.sequence.queries == 1) {
            visit(packed.kv_head * problem_.group + packed.begin, 0, 1, packed.rows, 0);
            return;
        }
        packed.for_each_head(problem_, [&](std::int64_t head, std::int64_t query, std::int64_t count, std::int64_t at) {
            visit(head, query, count, count, at);
        });
    }

    /// Products and softmax of all packed rows at once; before and between them, each head minds its own mask.
    void attend_tile(const PackedTile& packed, KeyTile<A> keys, KeyPass& pass, const Scratch& scratch) const {
        const RowTile<A> rows = scratch.span_rows(packed.rows);
        const ForwardScratch<A>& span = scratch.span;
        bool unmasked = true;
        const auto tile_of = [&](std::int64_t head, std::int64_t query, std::int64_t count, Coverage& covered) {
            Tile tile{&packed.sequence, head, query, count, keys.column, keys.columns, false};
            covered = coverage(problem_, tile);
            tile.full = covered == Coverage::full && !problem_.masks_single_scores();
            return tile;
        };
        for_each_part(packed, [&](std::int64_t head, std::int64_t query, std::int64_t queries, std::int64_t count,
                                  std::int64_t at) {
            Coverage covered = Coverage::none;
            Tile tile = tile_of(head, query, queries, covered);
            const ScoreScratch<A> own = scores_from(span, at);
            unmasked = unmasked && tile.full;
            if (covered == Coverage::none) {
                std::fill_n(own.allowed, count, std::uint64_t{0});
                return;
            }
            const bool needed = prepare_mask(problem_, setup_.kernels, tile, own);
            if (!tile.full) {
                std::fill_n(own.allowed + queries, count - queries, *own.allowed);  // what one may see, all may
            }
            if (needed && !keys.packed) {  // by the first head that needs them
                pack(setup_, packed.sequence, packed.kv_head, pass, keys, span);
            }
        });
        if (!keys.packed) {
            return;
        }
        multiply_query_key(setup_, rows, keys, span);
        for_each_part(packed, [&](std::int64_t head, std::int64_t query, std::int64_t queries, std::int64_t count,
                                  std::int64_t at) {
            Coverage covered = Coverage::none;
            Tile tile = tile_of(head, query, queries, covered);
            tile.rows = count;
            finish_scores(problem_, setup_.kernels, tile, scores_from(span, at), setup_.product_scale);
            if (problem_.dropout) {
                dropout_factors(setup_.kernels, problem_, tile, span.factors + at * kKeyTile);
            }
        });
        take_scores(setup_, rows, keys, unmasked, span);
    }

    void merge(const Scratch& scratch, std::int64_t r, const RowState<A>& part, const A* part_context) const {
        if (part.sum == A(0)) {
            return;  // nothing of this span was attended to
        }
        const RowTile<A> merged = scratch.merged_rows(r + 1);
        RowState<A> state = merged.state(r);
        const Shares<A> shares = merge_states(state, part);
        merged.reference[r] = state.reference;
        merged.sums[r * kernels::kLanes] = state.sum;  // the other lanes stay 0
        A* __restrict__ context = merged.context + r * shared_.width;
        for (std::int64_t d = 0; d < shared_.width; ++d) {
            context[d] = context[d] * shares.mine + part_context[d] * shares.other;
        }
    }

    void finish(const PackedTile& packed, const Scratch& scratch) const {
        const RowTile<A> merged = scratch.merged_rows(packed.rows);
        packed.for_each_head(problem_, [&](std::int64_t head, std::int64_t query, std::int64_t rows, std::int64_t at) {
            const RowTile<A> own{head,
                                 query,
                                 rows,
                                 {},
                                 pack_queries(rows, at, scratch.span),
                                 merged.context + at * shared_.width,
                                 merged.reference + at,
                                 merged.sums + at * kernels::kLanes};
            write_rows(setup_, packed.sequence, own, scratch.span);
        });
    }

    const ForwardCall& call_;
    const Problem& problem_;
    const DecodePlan& plan_;
    ForwardSetup<A> setup_;
    bool alike_;
    const Runtime& runtime_;
    Workspace workspace_;
    DecodeShared<A> shared_;
};

template <class A>
void count_bytes(const ForwardCall& call, const Runtime& runtime, DecodePlan& plan) {
    const Problem& problem = call.problem;
    Carver task;
    const DecodeScratch<A> scratch(ForwardSetup<A>(call, runtime, {}), task);
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
    problem.compute == DType::f64 ? count_bytes<double>(call, runtime, plan) : count_bytes<float>(call, runtime, plan);
    return plan;
}

void run_decode(const ForwardCall& call, const DecodePlan& plan, const Runtime& runtime) {
    call.problem.compute == DType::f64 ? Decode<double>(call, plan, runtime).run()
                                       : Decode<float>(call, plan, runtime).run();
}

}  // namespace qkv::detail
