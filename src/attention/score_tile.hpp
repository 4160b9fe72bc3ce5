// From products to scores: scale, softcap, bias and ALiBi, score function, mask. Forward and backward share it, so that
// backward sees the very bits that forward saw.
#pragma once

#include "attention/mask_ranges.hpp"
#include "attention/tile.hpp"
#include "core/exp.hpp"

namespace qkv::detail {

/// Room for one tile; each array (kQueryTile, kKeyTile).
template <class A>
struct ScoreScratch {
    A* scores;
    A* bias;                // the bias's values, where there is a bias
    std::uint8_t* allowed;  // by fill_allowed, where the tile is not full
};

/// What backward wants to see of the way; nullptr: not wanted.
template <class A>
struct ScoreTrail {
    A* capped = nullptr;           // after softcap
    A* before_function = nullptr;  // before the score function
};

/// scratch.bias ← the tile's bias, −∞ taken out of `allowed`; `covered` is what is left.
template <class A>
void load_bias(const Problem& problem, const Kernels<A>& kernels, const Tile& tile, const ScoreScratch<A>& scratch,
               Coverage& covered) {
    const ConstTensorView& bias = *problem.mask.bias_view;
    const Sequence& sequence = *tile.sequence;
    const auto at = [&](std::int64_t r) {
        return bias.at(sequence.batch, tile.head, sequence.query_start + tile.row + r,
                       sequence.key_start + tile.column);
    };
    bool finite = false;
    if (bias.strides[3] == 1) {
        finite =
            kernels.load(scratch.bias, kKeyTile, {at(0), bias.dtype, bias.strides[2], tile.rows}, tile.columns, A(1));
    } else {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            load(scratch.bias + r * kKeyTile, at(r), bias.dtype, bias.strides[3], tile.columns);
        }
    }
    if (finite) {
        return;  // nothing is masked by it
    }
    std::uint8_t any = 0;
    std::uint8_t all = 1;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        for (std::int64_t c = 0; c < tile.columns; ++c) {
            std::uint8_t& allowed = scratch.allowed[r * kKeyTile + c];
            allowed &= scratch.bias[r * kKeyTile + c] != kMinusInfinity<A> ? 1 : 0;
            any |= allowed;
            all &= allowed;
        }
    }
    covered = any == 0 ? Coverage::none : all == 0 ? Coverage::partial : Coverage::full;
}

/// Decides which entries of the tile may be attended to, before anything is multiplied; the tile is full from then on
/// if that is all of them. False: none.
template <class A>
[[nodiscard]] bool prepare_mask(const Problem& problem, const Kernels<A>& kernels, Tile& tile,
                                const ScoreScratch<A>& scratch) {
    if (tile.full) {
        return true;
    }
    Coverage covered = fill_allowed(problem, tile, scratch.allowed);
    if (covered != Coverage::none && problem.mask.bias_view) {
        load_bias(problem, kernels, tile, scratch, covered);
    }
    tile.full = covered == Coverage::full && problem.score_function.apply == nullptr;
    return covered != Coverage::none;
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

/// scratch.scores (rows, kKeyTile): scaled products q · k on entry, scores on return, −∞ where masked and past the
/// tile's columns. From here on "masked" is read off the score: −∞.
template <class A>
void finish_scores(const Problem& problem, const Kernels<A>& kernels, const Tile& tile, const ScoreScratch<A>& scratch,
                   const ScoreTrail<A>& trail = {}) {
    A* scores = scratch.scores;
    const std::int64_t count = tile.rows * kKeyTile;
    cap_scores(problem, kernels, scores, tile.rows);
    if (trail.capped != nullptr) {
        std::copy(scores, scores + count, trail.capped);
    }
    if (problem.mask.bias_view) {
        kernels.add(scores, scratch.bias, tile.rows);
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
    if (!tile.full || tile.columns < kKeyTile) {
        kernels.mask(scores, tile.full ? nullptr : scratch.allowed, tile.rows, tile.columns);
    }
}

}  // namespace qkv::detail
