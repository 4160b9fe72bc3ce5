// The turn itself, row by row: what Rope does to whole views, and a cache to the keys that it is given.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/convert.hpp"
#include "qkv/rope.hpp"

namespace qkv::detail {

/// Cosines and sines of one position in T, kept until another is asked for.
template <class T>
class RopeRows {
public:
    /// `back`: turns by −φ. The rope must outlive it.
    explicit RopeRows(const Rope& rope, bool back = false)
        : rope_(rope),
          back_(back),
          pairs_(rope.rotary_dim() / 2),
          cos_(static_cast<std::size_t>(pairs_)),
          sin_(static_cast<std::size_t>(pairs_)) {}

    /// `frequencies` are the rope's own of some length (none with tables), and stay where they are between calls.
    void move_to(std::int64_t position, const std::vector<double>& frequencies) {
        if (position == position_ && &frequencies == frequencies_) {
            return;
        }
        position_ = position;
        frequencies_ = &frequencies;
        if (rope_.cos_) {
            load(cos_.data(), rope_.cos_->at(0, 0, position, 0), rope_.cos_->dtype, rope_.cos_->strides[3], pairs_);
            load(sin_.data(), rope_.sin_->at(0, 0, position, 0), rope_.sin_->dtype, rope_.sin_->strides[3], pairs_);
        } else {
            for (std::size_t pair = 0; pair < cos_.size(); ++pair) {
                const double angle = static_cast<double>(position) * frequencies[pair];
                cos_[pair] = static_cast<T>(rope_.attention_factor_ * std::cos(angle));
                sin_[pair] = static_cast<T>(rope_.attention_factor_ * std::sin(angle));
            }
        }
        if (back_) {
            std::ranges::transform(sin_, sin_.begin(), std::negate<>{});
        }
    }

    /// Turns one row of head_dim columns in place.
    void turn(T* row) const {
        if (rope_.options_.pairing == RopePairing::half_split) {
            turn_pairs(row, 1, pairs_);
        } else {
            turn_pairs(row, 2, 1);
        }
    }

private:
    /// Pair i is columns i · step and i · step + gap.
    void turn_pairs(T* row, std::int64_t step, std::int64_t gap) const {
        for (std::int64_t pair = 0; pair < pairs_; ++pair) {
            const auto at = static_cast<std::size_t>(pair);
            const T a = row[pair * step];
            const T b = row[pair * step + gap];
            row[pair * step] = a * cos_[at] - b * sin_[at];
            row[pair * step + gap] = b * cos_[at] + a * sin_[at];
        }
    }

    const Rope& rope_;
    bool back_;
    std::int64_t pairs_;
    std::vector<T> cos_, sin_;
    std::int64_t position_ = -1;
    const std::vector<double>* frequencies_ = nullptr;
};

}  // namespace qkv::detail
