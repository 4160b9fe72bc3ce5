// The arrays of forward's work, and the steps that forward and the recording of weights share.
#pragma once

#include "attention/dropout.hpp"
#include "attention/forward.hpp"
#include "attention/score_tile.hpp"
#include "attention/state.hpp"

namespace qkv::detail {

/// Whether nothing but the scale and −∞ comes between products and softmax.
[[nodiscard]] inline bool plain_scores(const Problem& problem) {
    return problem.softcap == 0.0 && !problem.mask.bias_view && !problem.mask.alibi_slopes &&
           problem.score_function.apply == nullptr;
}

/// Whether scores and masks of one query are those of any head.
[[nodiscard]] inline bool tells_no_heads(const Problem& problem) {
    return plain_scores(problem) && !problem.dropout && !problem.mask.allowed_view && !problem.mask.block_list;
}

/// Whether heads of a group, of one query each and all with the same keys to see, are rows of one tile.
[[nodiscard]] inline bool stacks_heads(const ForwardCall& call) {
    const Problem& problem = call.problem;
    return problem.queries == 1 && problem.group > 1 && tells_no_heads(problem) && !problem.packed() &&
           !call.extras.weights && !call.extras.scores;
}

template <class A>
struct ForwardSetup {
    ForwardSetup(const ForwardCall& forward_call, const Runtime& runtime, const RowCut& forward_cut)
        : call(forward_call), kernels(kernels_for<A>(call.problem, runtime)), cut(forward_cut) {
        const Problem& problem = call.problem;
        const auto scale = static_cast<A>(problem.scale);
        const bool direct = plain_scores(problem) && scale > A(0);
        attends_at_once = !problem.dropout;
        (kernels.scales_queries ? query_scale : direct ? softmax_scale : product_scale) = scale;
    }

    const ForwardCall& call;
    const Kernels<A>& kernels;
    RowCut cut;
    // Where the scale goes, the others are 1: into the queries; into the products as they are finished; or, where
    // nothing comes between, into the softmax. Of the last two the bits are the same.
    A query_scale = A(1);
    A product_scale = A(1);
    A softmax_scale = A(1);
    /// Whether nothing is drawn, so that one verb can do all.
    bool attends_at_once = false;

    /// Tiles of scores that are at work at once.
    [[nodiscard]] std::int64_t score_tiles() const { return attends_at_once ? kernels.attended_scores : 1; }
};

/// A tile of queries within an item, with what it has gathered so far: of one head, or one of each of some heads.
template <class A>
struct RowTile {
    std::int64_t head = 0;
    std::int64_t row = 0;
    std::int64_t rows = 0;
    KeyRange needed;
    const A* query = nullptr;  // packed
    A* context = nullptr;      // (rows, padded Dv), not yet divided by the row sums
    A* reference = nullptr;    // (rows)
    A* sums = nullptr;         // (rows, kLanes)
    std::int64_t heads = 1;    // that the rows belong to

    [[nodiscard]] RowState<A> state(std::int64_t r) const { return {reference[r], total(sums + r * kernels::kLanes)}; }
};

/// Tiles of keys that are packed before the next tile of rows takes its turn.
inline constexpr std::int64_t kPanelTiles = kernels::kMostAttended;

/// A tile of keys, packed, and their values.
template <class A>
struct KeyTile {
    std::int64_t column = 0;
    std::int64_t columns = 0;
    std::int64_t place = 0;  // in the panel
    // As packed, or nullptr where a few rows take them where they lie.
    const A* keys = nullptr;
    const A* values = nullptr;
    const Sequence* sequence = nullptr;
    std::int64_t kv_head = 0;
    kernels::Ahead* ahead = nullptr;  // to be asked for meanwhile
    bool packed = false;
    // Values that can be taken from where they lie are loaded, and looked at, only when something masked meets them.
    bool loaded_values = false;
    bool finite_values = false;
};

template <class A>
struct ForwardScratch {
    ForwardScratch(const ForwardSetup<A>& setup, Carver& carver)
        : key_width(kernels::padded(setup.call.problem.head_dim)),
          value_width(kernels::padded(setup.call.problem.value_dim)),
          tiles(carver.take<RowTile<A>>(setup.cut.row_tiles())),
          key_tiles(carver.take<KeyTile<A>>(kPanelTiles)),
          attended(carver.take<kernels::AttendedKeys<A>>(setup.score_tiles())),
          attended_tiles(carver.take<Tile>(setup.score_tiles())),
          key(carver.take<A>(kKeyTile * key_width)),
          value(carver.take<A>(kPanelTiles * kKeyTile * value_width)),
          key_room(setup.kernels.key_room(setup.call.problem.head_dim)),
          value_room(setup.kernels.value_room(setup.call.problem.value_dim)),
          packed_key(carver.take<A>(kPanelTiles * key_room)),
          packed_value(carver.take<A>(kPanelTiles * value_room)),
          cleared(carver.take<A>(kKeyTile * value_width)),
          row_context(carver.take<A>(kernels::kRowBlock * value_width)),
          row_weights(carver.take<A>(kernels::kRowBlock * kKeyTile)),
          weights(carver.take<A>(kQueryTile * kKeyTile)),
          factors(carver.take<A>(setup.call.problem.dropout ? kQueryTile * kKeyTile : 0)),
          scores{carver.take<A>(setup.score_tiles() * kQueryTile * kKeyTile),
                 carver.take<A>(setup.call.problem.mask.bias_view ? setup.score_tiles() * kQueryTile * kKeyTile : 0),
                 carver.take<std::uint64_t>(setup.score_tiles() * kQueryTile)},
          query(carver.take<A>((setup.kernels.scales_queries ? setup.cut.row_tiles() : 1) * kQueryTile * key_width)),
          query_room(setup.kernels.query_room(setup.call.problem.head_dim)),
          packed_query(carver.take<A>(setup.cut.row_tiles() * query_room)),
          context(carver.take<A>(setup.cut.row_tiles() * kQueryTile * value_width)),
          reference(carver.take<A>(setup.cut.row_tiles() * kQueryTile)),
          sums(carver.take<A>(setup.cut.row_tiles() * kQueryTile * kernels::kLanes)) {}

    std::int64_t key_width;
    std::int64_t value_width;
    RowTile<A>* tiles;
    KeyTile<A>* key_tiles;  // of a panel
    // Of the scores that are at work at once.
    kernels::AttendedKeys<A>* attended;
    Tile* attended_tiles;
    A* key;  // (columns, padded D)
    // Of a panel's tiles of keys.
    A* value;  // (columns, padded Dv)
    std::int64_t key_room;
    std::int64_t value_room;
    A* packed_key;  // as the kernels want them
    A* packed_value;
    // For one row that must not see some of the values: those it may, its context and its weights.
    A* cleared;
    A* row_context;
    A* row_weights;
    A* weights;              // (rows, kKeyTile), relative to the row's reference
    A* factors;              // (rows, kKeyTile), dropout's
    ScoreScratch<A> scores;  // of score_tiles()
    // Of all row tiles.
    A* query;  // (rows, padded D)
    std::int64_t query_room;
    A* packed_query;
    A* context;
    A* reference;
    A* sums;

    [[nodiscard]] ScoreScratch<A> scores_of(std::int64_t tile) const {
        const std::int64_t size = tile * kQueryTile * kKeyTile;
        return {scores.scores + size, scores.bias + size, scores.allowed + tile * kQueryTile};
    }
    [[nodiscard]] A* value_at(const KeyTile<A>& tile) const { return value + tile.place * kKeyTile * value_width; }
    [[nodiscard]] A* packed_value_at(const KeyTile<A>& tile) const { return packed_value + tile.place * value_room; }
};

/// Whether fits(run, whether it is the last) of all runs of keys or values of the tile; `find` as in for_each_run.
template <class A, class Find, class Fits>
[[nodiscard]] bool all_runs(const Find& find, const ForwardSetup<A>& setup, const Sequence& sequence,
                            std::int64_t kv_head, const KeyTile<A>& tile, const Fits& fits) {
    bool all = true;
    std::int64_t left = tile.columns;
    for_each_run(find, setup.call.problem, sequence, kv_head, tile.column, tile.columns, [&](const Rows& run) {
        left -= run.rows;
        all = all && fits(run, left == 0);
    });
    return all;
}

template <class A>
void pack_keys(const ForwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head, KeyTile<A>& tile,
               const ForwardScratch<A>& scratch, kernels::Ahead* ahead = nullptr) {
    const Problem& problem = setup.call.problem;
    const auto pack = [&](std::int64_t first, const Rows& rows) {
        tile.keys = setup.kernels.pack_keys(scratch.packed_key + tile.place * scratch.key_room, first, rows,
                                            problem.head_dim, ahead);
    };
    const bool packs = all_runs(key_rows, setup, sequence, kv_head, tile, [&](const Rows& run, bool last) {
        return setup.kernels.packs(run, problem.head_dim) && (last || run.rows % kernels::kLanes == 0);
    });
    if (!packs) {
        load_keys(setup.kernels, scratch.key, problem, sequence, kv_head, tile.column, tile.columns);
        pack(0, kernels::loaded(scratch.key, tile.columns, problem.head_dim));
        return;
    }
    std::int64_t first = 0;
    for_each_run(key_rows, problem, sequence, kv_head, tile.column, tile.columns, [&](const Rows& run) {
        pack(first, run);
        first += run.rows;
    });
}

/// scratch.value_at(tile) ← its values, and whether they are finite.
template <class A>
void load_values(const ForwardSetup<A>& setup, KeyTile<A>& tile, const ForwardScratch<A>& scratch) {
    tile.finite_values = load_values(setup.kernels, scratch.value_at(tile), setup.call.problem, *tile.sequence,
                                     tile.kv_head, tile.column, tile.columns);
    tile.loaded_values = true;
}

/// Keys and values pass by a few rows, or many, and while a tile is at work the next one is asked for: a few rows wait
/// for memory more than for anything else.
struct KeyPass {
    /// rows: of the one tile of rows; 0: more tiles. last: where their keys end.
    template <class A>
    KeyPass(const Kernels<A>& kernels, std::int64_t rows, std::int64_t last)
        : end(last),
          stored_keys(0 < rows && rows <= kernels.few_key_rows),
          stored_values(0 < rows && rows <= kernels.few_value_rows) {
        if (kernels.few_value_rows == 0) {
            ahead.packing_pace = 8;  // its products do not ask
        }
    }

    std::int64_t end;
    // Whether rows are so few that they take them from where they lie.
    bool stored_keys;
    bool stored_values;
    bool begun = false;
    kernels::Ahead ahead;
};

/// Keys and values, once for all rows that need them.
template <class A>
void pack(const ForwardSetup<A>& setup, const Sequence& sequence, std::int64_t kv_head, KeyPass& pass, KeyTile<A>& tile,
          const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    const std::int64_t next = tile.column + tile.columns;
    const auto ask = [&](const auto& find, std::int64_t column, std::int64_t width) {
        for_each_run(find, problem, sequence, kv_head, column, std::min(kKeyTile, pass.end - column),
                     [&](const Rows& run) { pass.ahead.add(run, width); });
    };
    pass.ahead.clear();
    // Who takes values as they are stored asks for them along with the product that comes before.
    if (pass.stored_values || !pass.begun) {
        ask(value_rows, tile.column, problem.value_dim);
        pass.begun = true;
    }
    ask(key_rows, next, problem.head_dim);
    if (!pass.stored_values) {
        ask(value_rows, next, problem.value_dim);
    }
    tile.ahead = &pass.ahead;
    const auto meets = [&](const Rows& run, bool last) {
        return setup.kernels.takes_stored_keys(run, problem.head_dim) && (last || run.rows % kernels::kLanes == 0);
    };
    if (!pass.stored_keys || !all_runs(key_rows, setup, sequence, kv_head, tile, meets)) {
        pack_keys(setup, sequence, kv_head, tile, scratch, &pass.ahead);
    }
    tile.sequence = &sequence;
    tile.kv_head = kv_head;
    tile.packed = true;
    if (pass.stored_values) {
        const auto taken = [&](const Rows& run, bool last) {
            return setup.kernels.takes_stored_values(run, problem.value_dim, last);
        };
        if (!all_runs(value_rows, setup, sequence, kv_head, tile, taken)) {
            load_values(setup, tile, scratch);
        }
        return;
    }
    Rows values = value_rows(problem, sequence, kv_head, tile.column, tile.columns);
    if (values.rows < tile.columns || !setup.kernels.packs(values, problem.value_dim)) {
        load_values(setup, tile, scratch);
        values = kernels::loaded(scratch.value_at(tile), tile.columns, problem.value_dim);
    }
    tile.values = setup.kernels.pack_values(scratch.packed_value_at(tile), values, problem.value_dim);
}

/// visit(run) for the runs of values that are not packed: loaded ones, or where they lie.
template <class A, class Visit>
void for_each_value_run(const ForwardSetup<A>& setup, const KeyTile<A>& keys, const ForwardScratch<A>& scratch,
                        const Visit& visit) {
    const Problem& problem = setup.call.problem;
    if (keys.loaded_values) {
        visit(kernels::loaded(scratch.value_at(keys), keys.columns, problem.value_dim));
        return;
    }
    for_each_run(value_rows, problem, *keys.sequence, keys.kv_head, keys.column, keys.columns, visit);
}

/// scratch.scores ← query · keyᵀ over the tile's keys, without product_scale and softmax_scale.
template <class A>
void multiply_query_key(const ForwardSetup<A>& setup, const RowTile<A>& rows, const KeyTile<A>& keys,
                        const ForwardScratch<A>& scratch) {
    const Problem& problem = setup.call.problem;
    if (keys.keys != nullptr) {
        setup.kernels.multiply_keys(scratch.scores.scores, rows.query, keys.keys, rows.rows, keys.columns,
                                    problem.head_dim, keys.ahead);
        return;
    }
    std::int64_t first = 0;
    for_each_run(key_rows, problem, *keys.sequence, keys.kv_head, keys.column, keys.columns, [&](const Rows& run) {
        setup.kernels.multiply_stored_keys(scratch.scores.scores, rows.query, first, run, rows.rows, problem.head_dim,
                                           keys.ahead);
        first += run.rows;
    });
}

/// context += weights · value
template <class A>
void add_values(const ForwardSetup<A>& setup, const RowTile<A>& rows, const KeyTile<A>& keys, const A* weights,
                const ForwardScratch<A>& scratch) {
    const std::int64_t value_dim = setup.call.problem.value_dim;
    if (keys.values != nullptr) {
        setup.kernels.add_values(rows.context, weights, keys.values, rows.rows, keys.columns, value_dim);
        return;
    }
    std::int64_t first = 0;
    for_each_value_run(setup, keys, scratch, [&](const Rows& run) {
        setup.kernels.add_stored_values(rows.context, weights, first, run, rows.rows, value_dim, keys.ahead);
        first += run.rows;
    });
}

/// context += weights · value, row by row, leaving out what is masked: 0 × NaN is NaN.
template <class A>
void add_unmasked_values(const ForwardSetup<A>& setup, const RowTile<A>& rows, const KeyTile<A>& keys,
                         const ForwardScratch<A>& scratch) {
    const std::int64_t width = scratch.value_width;
    const std::int64_t value_dim = setup.call.problem.value_dim;
    const Kernels<A>& kernels = setup.kernels;
    const Rows cleared = kernels::loaded(scratch.cleared, keys.columns, value_dim);
    for (std::int64_t r = 0; r < rows.rows; ++r) {
        clear_masked_rows(scratch.cleared, scratch.value_at(keys), keys.columns, width,
                          scratch.scores.scores + r * kKeyTile, 1);
        if (kernels.few_value_rows > 0) {
            kernels.add_stored_values(rows.context + r * width, scratch.weights + r * kKeyTile, 0, cleared, 1,
                                      value_dim, nullptr);
            continue;
        }
        const A* values = kernels.pack_values(scratch.packed_value_at(keys), cleared, value_dim);
        std::copy_n(rows.context + r * width, width, scratch.row_context);
        std::copy_n(scratch.weights + r * kKeyTile, kKeyTile, scratch.row_weights);
        kernels.add_values(scratch.row_context, scratch.row_weights, values, 1, keys.columns, value_dim);
        std::copy_n(scratch.row_context, width, rows.context + r * width);
    }
    if (kernels.few_value_rows == 0) {  // the room holds what the last row was shown
        (void)kernels.pack_values(scratch.packed_value_at(keys),
                                  kernels::loaded(scratch.value_at(keys), keys.columns, value_dim), value_dim);
    }
}

/// Takes finished scores over packed keys into the rows' softmax and context (Dao 2023, algorithm 1, lines 9 and 10).
/// unmasked: every row may attend to every packed key.
template <class A>
void take_scores(const ForwardSetup<A>& setup, const RowTile<A>& rows, KeyTile<A>& keys, bool unmasked,
                 const ForwardScratch<A>& scratch) {
    const std::int64_t value_dim = setup.call.problem.value_dim;
    A* scores = scratch.scores.scores;
    // Weights take the place of scores, unless those must still tell what is masked.
    if (!unmasked && !keys.loaded_values) {
        load_values(setup, keys, scratch);
    }
    const bool multiply_all = unmasked || keys.finite_values;
    A* weights = multiply_all ? scores : scratch.weights;
    setup.kernels.soften(weights, scores, setup.softmax_scale, setup.call.problem.dropout ? scratch.factors : nullptr,
                         {rows.reference, rows.sums}, rows.context, value_dim, rows.rows, kKeyTile);
    if (multiply_all) {
        add_values(setup, rows, keys, weights, scratch);
    } else {
        add_unmasked_values(setup, rows, keys, scratch);
    }
}

/// A tile of rows that has seen nothing.
template <class A>
void clear_rows(const RowTile<A>& rows, const ForwardScratch<A>& scratch) {
    std::fill_n(rows.context, rows.rows * scratch.value_width, A(0));
    std::fill_n(rows.reference, rows.rows, kMinusInfinity<A>);
    std::fill_n(rows.sums, rows.rows * kernels::kLanes, A(0));
}

/// The state with the sink of its head, where there are sinks.
template <class A>
[[nodiscard]] RowState<A> with_sinks(const ForwardSetup<A>& setup, std::int64_t head, const RowState<A>& state) {
    const auto& sinks = setup.call.problem.sinks;
    return sinks ? with_sink(state, per_head_value<A>(*sinks, 0, head)) : state;
}

/// Takes in the sinks, divides by the row sums and writes context and lse; and for those who ask, weights and scores.
template <class A>
void write_rows(const ForwardSetup<A>& setup, const Sequence& sequence, const RowTile<A>& rows,
                const ForwardScratch<A>& scratch);

}  // namespace qkv::detail
