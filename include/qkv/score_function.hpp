// A function of your own on the scores, for research (compare FlexAttention's score_mod, Dong et al. 2024).
#pragma once

#include <cstdint>

#include "qkv/export.h"
#include "qkv/types.hpp"

namespace qkv QKV_EXPORT {

/// A tile of scores with the absolute place of its first element. Row r, column c at values[r · row_stride + c] of
/// type `dtype` (f32 or f64) is the score of query + r and key + c.
struct ScoreTile {
    void* values = nullptr;
    DType dtype = DType::f32;
    std::int64_t row_stride = 0;
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    std::int64_t sequence = 0;
    std::int64_t head = 0;
    std::int64_t query = 0;
    std::int64_t key = 0;
};

/// Called once per tile between ALiBi and the mask, from several threads at once. Entries that the mask takes away may
/// hold anything and are dropped afterwards; −∞ returned for an entry masks it.
struct ScoreFunction {
    /// Replaces the scores of the tile.
    void (*apply)(const void* user, const ScoreTile& tile) = nullptr;
    /// Multiplies each entry of `gradients` by the derivative of the function at `scores` (as they were before apply).
    void (*gradient)(const void* user, const ScoreTile& scores, const ScoreTile& gradients) = nullptr;
    const void* user = nullptr;
};

/// Element-wise functions as a ScoreFunction: value(score, sequence, head, query, key) → score, and
/// derivative(score, sequence, head, query, key) → d value / d score. Must outlive its use.
///
///     const ElementwiseScore twice{[](auto s, auto...) { return 2 * s; }, [](auto s, auto...) { return 0 * s + 2; }};
///     options.score_function = twice.function();
template <class Value, class Derivative>
struct ElementwiseScore {
    Value value;
    Derivative derivative;

    [[nodiscard]] ScoreFunction function() const noexcept { return {&apply, &gradient, this}; }

private:
    template <class Visit>
    static void each(const ScoreTile& tile, Visit visit) {
        for (std::int64_t row = 0; row < tile.queries; ++row) {
            for (std::int64_t column = 0; column < tile.keys; ++column) {
                visit(row * tile.row_stride + column, tile.query + row, tile.key + column);
            }
        }
    }
    template <class T>
    void apply_typed(const ScoreTile& tile) const {
        auto* values = static_cast<T*>(tile.values);
        each(tile, [&](std::int64_t at, std::int64_t query, std::int64_t key) {
            values[at] = value(values[at], tile.sequence, tile.head, query, key);
        });
    }
    template <class T>
    void gradient_typed(const ScoreTile& scores, const ScoreTile& gradients) const {
        const auto* before = static_cast<const T*>(scores.values);
        auto* values = static_cast<T*>(gradients.values);
        each(scores, [&](std::int64_t at, std::int64_t query, std::int64_t key) {
            values[at] *= derivative(before[at], scores.sequence, scores.head, query, key);
        });
    }
    static void apply(const void* user, const ScoreTile& tile) {
        const auto& self = *static_cast<const ElementwiseScore*>(user);
        tile.dtype == DType::f64 ? self.template apply_typed<double>(tile) : self.template apply_typed<float>(tile);
    }
    static void gradient(const void* user, const ScoreTile& scores, const ScoreTile& gradients) {
        const auto& self = *static_cast<const ElementwiseScore*>(user);
        scores.dtype == DType::f64 ? self.template gradient_typed<double>(scores, gradients)
                                   : self.template gradient_typed<float>(scores, gradients);
    }
};
template <class Value, class Derivative>
ElementwiseScore(Value, Derivative) -> ElementwiseScore<Value, Derivative>;

}  // namespace qkv QKV_EXPORT
