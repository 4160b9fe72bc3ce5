// From products to scores: scale, softcap, bias and ALiBi, score function, mask. Forward and backward share it, so that
// backward sees the very bits that forward saw.
#pragma once

#include <array>

#include "attention/mask_ranges.hpp"
#include "attention/tile.hpp"

namespace qkv::detail {

/// Room for one tile; each array (kQueryTile, kKeyTile).
template <class A>
struct ScoreScratch {
    A* scores;
    A* bias;                 // the bias's values, where there is a bias that does not lie well
    std::uint64_t* allowed;  // (kQueryTile) by fill_allowed, where the tile is not full
};

/// What backward wants to see of the way; nullptr: not wanted.
template <class A>
struct ScoreTrail {
    A* capped = nullptr;           // after softcap
    A* before_function = nullptr;  // before the score function
};

/// The tile's part of the bias where it lies, if a kernel can read whole rows there; else no rows.
[[nodiscard]] inline Rows bias_in_place(const Problem& problem, const Tile& tile) {
    const ConstTensorView& bias = *problem.mask.bias_view;
    const Sequence& sequence = *tile.sequence;
    if (bias.strides[3] != 1 || tile.columns < kKeyTile) {
        return {};
    }
    return {bias.at(sequence.batch, tile.head, sequence.query_start + tile.row, sequence.key_start + tile.column),
            bias.dtype, bias.strides[2], tile.rows};
}

/// The tile's part of the bias, of which load_bias has brought what does not lie well.
template <class A>
[[nodiscard]] Rows bias_rows(const Problem& problem, const Tile& tile, const ScoreScratch<A>& scratch) {
    const Rows in_place = bias_in_place(problem, tile);
    return in_place.data != nullptr
               ? in_place
               : Rows{reinterpret_cast<const std::byte*>(scratch.bias), dtype_of<A>, kKeyTile, tile.rows};
}

template <class A>
void load_bias(const Problem& problem, const Tile& tile, const ScoreScratch<A>& scratch) {
    if (bias_in_place(problem, tile).data != nullptr) {
        return;
    }
    const ConstTensorView& bias = *problem.mask.bias_view;
    const Sequence& sequence = *tile.sequence;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        A* row = scratch.bias + r * kKeyTile;
        load(row,
             bias.at(sequence.batch, tile.head, sequence.query_start + tile.row + r, sequence.key_start + tile.column),
             bias.dtype, bias.strides[3], tile.columns);
        std::fill(row + tile.columns, row + kKeyTile, A(0));
    }
}

/// Asks for the tile's part of a [B, H, Tq, Tk] view, whose rows are far apart.
inline void fetch(const ConstTensorView& view, const Tile& tile) {
    const Sequence& sequence = *tile.sequence;
    if (view.strides[3] == 1) {
        fetch({view.at(sequence.batch, tile.head, sequence.query_start + tile.row, sequence.key_start + tile.column),
               view.dtype, view.strides[2], view.strides[2] == 0 ? 1 : tile.rows},
              tile.columns);
    }
}

/// Asks for what prepare_mask will read of the tile.
inline void fetch_mask(const Problem& problem, const Tile& tile) {
    if (problem.mask.allowed_view) {
        fetch(*problem.mask.allowed_view, tile);
    }
    if (problem.mask.bias_view) {
        fetch(*problem.mask.bias_view, tile);
    }
}

/// Whether the bias leaves anything of what is allowed; most often its first row says so.
template <class A>
[[nodiscard]] bool bias_leaves_any(const Problem& problem, const Kernels<A>& kernels, const Tile& tile,
                                   const ScoreScratch<A>& scratch) {
    Rows row = bias_rows(problem, tile, scratch);
    row.rows = 1;
    for (std::int64_t r = 0; r < tile.rows; ++r, row.data += row.stride * size_of(row.dtype)) {
        std::uint64_t left = scratch.allowed[r];
        kernels.keep_unmasked(&left, row);
        if (left != 0) {
            return true;
        }
    }
    return false;
}

/// Decides which entries of the tile may be attended to, before anything is multiplied; the tile is full from then on
/// if that is known to be all of them. False: none. What a bias of −∞ masks is found as it is added, but where
/// something else may still make a number of −∞, and for a few rows, which are cheaper to look at than all values are.
template <class A>
[[nodiscard]] bool prepare_mask(const Problem& problem, const Kernels<A>& kernels, Tile& tile,
                                const ScoreScratch<A>& scratch) {
    if (tile.full) {
        return true;
    }
    fill_allowed(problem, tile, kernels.keep_true, scratch.allowed);
    const std::span<const std::uint64_t> words(scratch.allowed, static_cast<std::size_t>(tile.rows));
    Coverage covered = coverage_of(words, tile.columns);
    const bool has_function = problem.score_function.apply != nullptr;
    if (covered != Coverage::none && problem.mask.bias_view) {
        load_bias(problem, tile, scratch);
        if (!has_function && !problem.mask.alibi_slopes && tile.rows >= kernels::kRowBlock) {
            return bias_leaves_any(problem, kernels, tile, scratch);
        }
        kernels.keep_unmasked(scratch.allowed, bias_rows(problem, tile, scratch));
        covered = coverage_of(words, tile.columns);
    }
    tile.full = covered == Coverage::full && !has_function;
    return covered != Coverage::none;
}

/// The columns that the rows meet, whose scores and weights are to be computed: a user's function sees all scores.
[[nodiscard]] inline kernels::Columns columns_met(const Problem& problem, const Tile& tile, std::int64_t columns) {
    if (problem.score_function.apply != nullptr) {
        return columns;
    }
    const std::int64_t first = tile.row + tile.sequence->high + 1 - tile.column;
    return {columns, std::min(first, kKeyTile)};
}

template <class A>
void cap_scores(const Problem& problem, const Kernels<A>& kernels, A* scores, std::int64_t rows) {
    if (problem.softcap > 0.0) {
        kernels.cap(scores, rows, static_cast<A>(problem.softcap));
    }
}

/// The place of a tile's first entry, counted globally.
template <class A>
[[nodiscard]] ScoreTile public_tile(const Problem& problem, const Tile& tile, A* values) {
    const Offsets& offsets = problem.offsets;
    return {values,
            problem.compute,
            kKeyTile,
            tile.rows,
            tile.columns,
            tile.sequence->index,
            offsets.head + tile.head,
            tile.sequence->query_offset + tile.row,
            offsets.key + tile.column};
}

/// query − key along ALiBi's diagonal, for the tile's first entry.
[[nodiscard]] inline std::int64_t alibi_offset(const Tile& tile) {
    return tile.row + tile.sequence->alibi_shift - tile.column;
}

template <class A>
[[nodiscard]] A per_head_value(const ConstTensorView& view, std::int64_t batch, std::int64_t head) {
    A value{};
    load(&value, view.at(batch, head, 0, 0), view.dtype, 1, 1);
    return value;
}

/// scratch.scores (rows, kKeyTile): products q · k that lack a factor on entry, scores on return, −∞ where masked and
/// past the tile's columns. From here on "masked" is read off the score: −∞.
template <class A>
void finish_scores(const Problem& problem, const Kernels<A>& kernels, const Tile& tile, const ScoreScratch<A>& scratch,
                   A factor, const ScoreTrail<A>& trail = {}) {
    A* scores = scratch.scores;
    const std::int64_t count = tile.rows * kKeyTile;
    const bool biased = problem.mask.bias_view && problem.softcap == 0.0;  // then the bias brings the factor
    if (!biased && factor != A(1)) {
        kernels.scale(scores, tile.rows, factor);
    }
    cap_scores(problem, kernels, scores, tile.rows);
    if (trail.capped != nullptr) {
        std::copy(scores, scores + count, trail.capped);
    }
    if (problem.mask.bias_view) {
        kernels.add(scores, bias_rows(problem, tile, scratch), biased ? factor : A(1));
    }
    if (problem.mask.alibi_slopes) {
        const A slope = per_head_value<A>(*problem.mask.alibi_slopes, tile.sequence->batch, tile.head);
        kernels.slope(scores, tile.rows, slope, static_cast<A>(alibi_offset(tile)));
    }
    if (problem.score_function.apply != nullptr) {
        if (trail.before_function != nullptr) {
            std::copy(scores, scores + count, trail.before_function);
        }
        problem.score_function.apply(problem.score_function.user, public_tile(problem, tile, scores));
        kernels.enter();  // the function may itself have used, and given back, what enter sets up
    }
    if (!tile.full) {
        kernels.mask(scores, scratch.allowed, tile.rows);
    } else if (tile.columns < kKeyTile) {
        std::array<std::uint64_t, kQueryTile> there{};
        there.fill(column_bits(tile.columns));
        kernels.mask(scores, there.data(), tile.rows);
    }
}

}  // namespace qkv::detail
