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

/// Decides which entries of the tile may be attended to, before anything is multiplied. False: none.
template <class A>
[[nodiscard]] bool prepare_mask(const Problem& problem, const Tile& tile, const ScoreScratch<A>& scratch) {
    if (tile.full) {
        return true;
    }
    bool any = fill_allowed(problem, tile, scratch.allowed);
    if (any && problem.mask.bias_view) {
        const ConstTensorView& bias = *problem.mask.bias_view;
        const Sequence& sequence = *tile.sequence;
        any = false;
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            A* row = scratch.bias + r * kKeyTile;
            std::uint8_t* allowed = scratch.allowed + r * kKeyTile;
            load(row,
                 bias.at(sequence.batch, tile.head, sequence.query_start + tile.row + r,
                         sequence.key_start + tile.column),
                 bias.dtype, bias.strides[3], tile.columns);
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                allowed[c] = allowed[c] != 0 && row[c] != kMinusInfinity<A> ? 1 : 0;
                any = any || allowed[c] != 0;
            }
        }
    }
    return any;
}

template <class A>
void scale_scores(const Problem& problem, A* scores, std::int64_t rows) {
    const auto scale = static_cast<A>(problem.scale);
    for (std::int64_t i = 0; i < rows * kKeyTile; ++i) {
        scores[i] *= scale;
    }
}

template <class A>
void cap_scores(const Problem& problem, A* scores, std::int64_t rows) {
    if (problem.softcap > 0.0) {
        const auto cap = static_cast<A>(problem.softcap);
        for (std::int64_t i = 0; i < rows * kKeyTile; ++i) {
            scores[i] = cap * tanh_fast(scores[i] / cap);
        }
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

/// |query − key| along ALiBi's diagonal.
template <class A>
[[nodiscard]] A alibi_distance(const Tile& tile, std::int64_t r, std::int64_t c) {
    const std::int64_t distance = tile.row + r + tile.sequence->alibi_shift - (tile.column + c);
    return static_cast<A>(distance < 0 ? -distance : distance);
}

template <class A>
[[nodiscard]] A per_head_value(const ConstTensorView& view, std::int64_t batch, std::int64_t head) {
    A value{};
    load(&value, view.at(batch, head, 0, 0), view.dtype, 1, 1);
    return value;
}

/// scratch.scores (rows, kKeyTile): products q · k on entry, scores on return, −∞ where masked and past the tile's
/// columns. From here on "masked" is read off the score: −∞.
template <class A>
void finish_scores(const Problem& problem, const Tile& tile, const ScoreScratch<A>& scratch,
                   const ScoreTrail<A>& trail = {}) {
    A* scores = scratch.scores;
    const std::int64_t count = tile.rows * kKeyTile;
    scale_scores(problem, scores, tile.rows);
    cap_scores(problem, scores, tile.rows);
    if (trail.capped != nullptr) {
        std::copy(scores, scores + count, trail.capped);
    }
    if (problem.mask.bias_view) {
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                scores[r * kKeyTile + c] += scratch.bias[r * kKeyTile + c];
            }
        }
    }
    if (problem.mask.alibi_slopes) {
        const A slope = per_head_value<A>(*problem.mask.alibi_slopes, tile.sequence->batch, tile.head);
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                scores[r * kKeyTile + c] -= slope * alibi_distance<A>(tile, r, c);
            }
        }
    }
    if (problem.score_function.apply != nullptr) {
        if (trail.before_function != nullptr) {
            std::copy(scores, scores + count, trail.before_function);
        }
        problem.score_function.apply(problem.score_function.user, public_tile(problem, tile, scores));
    }
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        A* row = scores + r * kKeyTile;
        if (!tile.full) {
            const std::uint8_t* allowed = scratch.allowed + r * kKeyTile;
            for (std::int64_t c = 0; c < kKeyTile; ++c) {
                row[c] = allowed[c] != 0 ? row[c] : kMinusInfinity<A>;
            }
        }
        for (std::int64_t c = tile.columns; c < kKeyTile; ++c) {
            row[c] = kMinusInfinity<A>;
        }
    }
}

}  // namespace qkv::detail
