// A panel of queries meets its keys: the one place where dQ, dK and dV are summed.
//
// A chain is a key head of one sequence with all queries of its group. They pass in panels, the keys in tiles:
//
//               keys →   0     1     2     3
//     panel 1          │ ■ ──► ■ ──► ■ ──► ■     dQ of the panel: summed along the row, in its task's own memory
//                      │ │     │     │     │
//     panel 0          ▼ ■ ──► ■ ──► ■ ──► ■     dK, dV of a tile: summed down the column
//
// Both orders are fixed, so the bits do not depend on who works on which panel. Two threads work on neighbouring panels
// of one chain at once: the second follows the first at a distance of one tile. The last queries come first: with a
// causal mask their panel is the longest, and short ones fill up the finish.
#pragma once

#include <atomic>
#include <ranges>
#include <thread>

#include "attention/backward_tile.hpp"

namespace qkv::detail {

struct Chain {
    Sequence sequence;
    std::int64_t kv_head = 0;
};

/// Tiles [begin, end) of keys.
struct KeyTiles {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    [[nodiscard]] bool has(std::int64_t tile) const { return begin <= tile && tile < end; }
};

/// Those that the queries of the panel at a place of the chain's order may meet: none where there is no such place.
/// Later queries begin and end no earlier. So of the panels that meet a tile each follows right after the other, and
/// among neighbours it shows who is the first and who the last.
[[nodiscard]] inline KeyTiles tiles_met(const Problem& problem, const Panels& panels, const Sequence& sequence,
                                        std::int64_t place) {
    const std::int64_t count = panels.count(problem, sequence.queries);
    const std::int64_t row = panels.first_query(problem, count - 1 - place);
    if (place < 0 || place >= count || row >= sequence.queries) {
        return {};
    }
    const KeyRange needed = needed_keys(sequence, row, std::min(panels.cut.tokens, sequence.queries - row));
    return needed.begin < needed.end ? KeyTiles{needed.begin / kKeyTile, tiles_of(needed.end, kKeyTile)} : KeyTiles{};
}

/// Those that any of them may meet: one range, since where one row's keys end the next row's do not begin later.
[[nodiscard]] inline KeyTiles tiles_met_by_any(const Problem& problem, const Panels& panels, const Sequence& sequence) {
    KeyTiles met;
    for (std::int64_t place = 0; place < panels.count(problem, sequence.queries); ++place) {
        const KeyTiles own = tiles_met(problem, panels, sequence, place);
        if (own.begin < own.end) {
            met = met.begin < met.end ? KeyTiles{own.begin, met.end} : own;
        }
    }
    return met;
}

/// Tiles of keys that panels are done with: those of the panel before must be ahead. Nothing, where one task takes the
/// panels one after another or nothing is added to keys.
struct PanelTurn {
    const std::atomic<std::int64_t>* before = nullptr;
    std::atomic<std::int64_t>* own = nullptr;

    /// Returns once the panel before is done with `tile`.
    void wait(std::int64_t tile) const {
        while (before != nullptr && before->load(std::memory_order_acquire) <= tile) {
            std::this_thread::yield();
        }
    }
    void pass(std::int64_t tile) const {
        if (own != nullptr) {
            own->store(tile + 1, std::memory_order_release);
        }
    }
};

/// The sums of one chain between its panels: in `room`, or, where that is null, in dk and dv themselves.
template <class A>
class ChainSums {
public:
    ChainSums(const BackwardSetup<A>& setup, const Chain& chain, const BackwardScratch<A>& scratch, A* room)
        : setup_(setup), chain_(chain), scratch_(scratch), room_(room) {}

    /// The sums of a tile of keys, as the panels before have left them.
    [[nodiscard]] KeySums<A> take(std::int64_t column, bool first) const {
        const AttentionGradients& wanted = setup_.call.gradients;
        KeySums<A> sums{scratch_.d_key, scratch_.d_value};
        if (room_ != nullptr) {
            const std::int64_t keys = tiles_of(setup_.panels.most_keys, kKeyTile) * kKeyTile;
            sums.key = room_ + column * scratch_.key_width;
            sums.value = room_ + (wanted.dk ? keys * scratch_.key_width : 0) + column * scratch_.value_width;
        }
        if (first) {
            std::fill_n(sums.key, wanted.dk ? kKeyTile * scratch_.key_width : 0, A(0));
            std::fill_n(sums.value, wanted.dv ? kKeyTile * scratch_.value_width : 0, A(0));
        } else if (room_ == nullptr) {
            load_rows(setup_.call.gradients.dk, sums.key, column);
            load_rows(setup_.call.gradients.dv, sums.value, column);
        }
        return sums;
    }
    void leave(const KeySums<A>& sums, std::int64_t column) const {
        if (room_ == nullptr) {
            store_rows(setup_.call.gradients.dk, sums.key, column, A(1));
            store_rows(setup_.call.gradients.dv, sums.value, column, A(1));
        }
    }
    /// Writes dk and dv.
    void finish(const KeySums<A>& sums, std::int64_t column) const {
        const auto write = [&](const std::optional<TensorView>& view, const A* from, A factor) {
            if (view) {
                store_rows(view, setup_.kernels.sums_as_rows(scratch_.sum_rows, from, view->size(3)), column, factor);
            }
        };
        write(setup_.call.gradients.dk, sums.key, setup_.product_scale);  // where queries have no scale
        write(setup_.call.gradients.dv, sums.value, A(1));
    }

private:
    [[nodiscard]] RowsOut rows(const TensorView& view, std::int64_t column) const {
        const Sequence& sequence = chain_.sequence;
        return rows_of(view, sequence.batch, chain_.kv_head, sequence.key_start + column,
                       std::min(kKeyTile, sequence.keys - column));
    }
    void load_rows(const std::optional<TensorView>& view, A* to, std::int64_t column) const {
        if (view) {
            const RowsOut from = rows(*view, column);
            (void)setup_.kernels.load(to, kernels::padded(view->size(3)),
                                      {from.data, from.dtype, from.stride, from.rows}, view->size(3), A(1));
        }
    }
    void store_rows(const std::optional<TensorView>& view, const A* from, std::int64_t column, A factor) const {
        if (view) {
            setup_.kernels.store(rows(*view, column), from, view->size(3), &factor, 0);
        }
    }

    const BackwardSetup<A>& setup_;
    const Chain& chain_;
    const BackwardScratch<A>& scratch_;
    A* room_;
};

/// −Σ dS · |distance|, the tile's part in the gradient of its head's slope.
template <class A>
[[nodiscard]] double slope_gradient(const Tile& tile, const A* d_scores) {
    double sum = 0.0;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        for (std::int64_t c = 0; c < tile.columns; ++c) {
            const std::int64_t distance = std::abs(alibi_offset(tile) + r - c);
            sum -= static_cast<double>(d_scores[r * kKeyTile + c]) * static_cast<double>(distance);
        }
    }
    return sum;
}

/// The tile where these rows meet columns [column, column + columns); false when they need none of them.
template <class A>
[[nodiscard]] bool meet(const BackwardSetup<A>& setup, const Sequence& sequence, const QueryTile<A>& rows,
                        std::int64_t column, std::int64_t columns, const BackwardScratch<A>& scratch, Tile& tile) {
    const Problem& problem = setup.call.problem;
    if (columns <= 0 || column + columns <= rows.needed.begin || column >= rows.needed.end) {
        return false;
    }
    tile = {&sequence, rows.head, rows.row, rows.rows, column, columns, false};
    const Coverage covered = coverage(problem, tile);
    tile.full = covered == Coverage::full && !problem.masks_single_scores();
    return covered != Coverage::none && prepare_mask(problem, setup.kernels, tile, scratch.scores);
}

/// Everything that the queries of one panel, `place` in the chain's order, give and get.
template <class A>
void panel_gradients(const BackwardSetup<A>& setup, const Chain& chain, std::int64_t place, const PanelTurn& turn,
                     A* room, BackwardScratch<A>& scratch, const RowStatistics<A>& statistics) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    const Sequence& sequence = chain.sequence;
    const RowCut& cut = setup.panels.cut;
    const std::int64_t panels = setup.panels.count(problem, sequence.queries);
    const std::int64_t panel = panels - 1 - place;
    const std::int64_t begin = setup.panels.first_query(problem, panel);
    const std::int64_t first_head =
        chain.kv_head * problem.group + panel % setup.panels.head_pieces(problem) * cut.heads;
    const std::int64_t end_head = std::min(first_head + cut.heads, (chain.kv_head + 1) * problem.group);

    std::int64_t count = 0;
    for (std::int64_t row = begin; row < std::min(begin + cut.tokens, sequence.queries); row += kQueryTile) {
        for (std::int64_t head = first_head; head < end_head; ++head) {
            const std::int64_t rows = std::min(kQueryTile, sequence.queries - row);
            (void)load_query_side(setup, sequence, head, row, rows, count++, scratch);
            for (std::int64_t query = row; setup.writes_bias && query < row + rows; ++query) {
                clear_bias_row(*call.gradients.dbias, sequence.batch, head, query);  // tiles may be skipped
            }
        }
    }
    const std::span tiles(scratch.tiles, static_cast<std::size_t>(count));
    const ChainSums<A> chain_sums(setup, chain, scratch, room);
    if (place == 0) {  // keys that no query meets
        const KeyTiles met = tiles_met_by_any(problem, setup.panels, sequence);
        for (std::int64_t tile = 0; tile < tiles_of(sequence.keys, kKeyTile); ++tile) {
            if (!met.has(tile)) {
                chain_sums.finish(chain_sums.take(tile * kKeyTile, true), tile * kKeyTile);
            }
        }
    }
    const KeyTiles before = tiles_met(problem, setup.panels, sequence, place - 1);
    const KeyTiles own = tiles_met(problem, setup.panels, sequence, place);
    const KeyTiles after = tiles_met(problem, setup.panels, sequence, place + 1);
    for (std::int64_t column = own.begin * kKeyTile; column < own.end * kKeyTile; column += kKeyTile) {
        const bool first = !before.has(column / kKeyTile);
        const bool last = !after.has(column / kKeyTile);
        if (!first) {
            turn.wait(column / kKeyTile);
        }
        // Keys from end_key on are nobody's: they are not read, and their gradients stay 0.
        const std::int64_t columns = std::min({kKeyTile, sequence.keys - column, sequence.end_key - column});
        std::optional<KeySums<A>> sums;
        if (first || last) {
            sums = chain_sums.take(column, first);
        }
        bool loaded = false;
        for (QueryTile<A>& rows : std::views::reverse(tiles)) {  // as panels are: how they are cut never shows
            Tile tile;
            if (!meet(setup, sequence, rows, column, columns, scratch, tile)) {
                continue;
            }
            if (!loaded) {
                load_key_side(setup, sequence, chain.kv_head, column, columns, scratch);
                sums = sums ? sums : chain_sums.take(column, first);
                loaded = true;
            }
            bias_gradient_tile(setup, tile, rows, statistics, scratch);
            if (call.gradients.dalibi) {
                rows.slope_gradient += slope_gradient(tile, scratch.d_scores);
            }
            if (setup.writes_bias) {
                write_bias_tile(setup, tile, scratch.d_scores);
            }
            product_gradient_tile(problem, tile, scratch);
            add_gradients(setup, tile, rows, *sums, scratch);
        }
        if (last) {
            chain_sums.finish(*sums, column);
        } else if (sums) {
            chain_sums.leave(*sums, column);
        }
        turn.pass(column / kKeyTile);
    }
    for (const QueryTile<A>& rows : tiles) {
        if (call.gradients.dq) {
            const auto scale = static_cast<A>(problem.scale);
            setup.kernels.store(
                rows_of(*call.gradients.dq, sequence.batch, rows.head, sequence.query_start + rows.row, rows.rows),
                rows.d_query, problem.head_dim, &scale, 0);
        }
        if (call.gradients.dalibi) {
            statistics.dalibi[tile_number(problem, sequence.index, rows.row) * problem.heads + rows.head] =
                rows.slope_gradient;
        }
    }
}

}  // namespace qkv::detail
