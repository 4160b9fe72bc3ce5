// Which keys a tile of queries needs: every mask comes down to an ordered list of key ranges, each full or partial.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/problem.hpp"

namespace qkv::detail {

/// How much of a tile of scores the closed-form masks and block lists leave.
enum class Coverage : std::uint8_t { none, partial, full };

/// Columns [begin, end), cut at multiples of kKeyTile (or at the last needed key).
struct KeyRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    bool full = false;  // every row of the tile may attend to every column
};

/// The keys from the first to the last that any of rows [row, row + rows) may attend to, by the closed-form masks.
[[nodiscard]] KeyRange needed_keys(const Sequence& sequence, std::int64_t row, std::int64_t rows);

/// Lists the ranges for rows [row, row + rows) of a head, in ascending order; what lies between them is skipped.
///
///     rows of a causal tile             ranges
///         1 1 1 1 1 1 0 0 0 0 0
///         1 1 1 1 1 1 1 0 0 0 0         [0, 6) full, [6, 9) partial
///         1 1 1 1 1 1 1 1 0 0 0
///         1 1 1 1 1 1 1 1 1 0 0
class KeyRanges {
public:
    KeyRanges(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t row, std::int64_t rows);

    /// The next range into `range`; false when there is none.
    [[nodiscard]] bool next(KeyRange& range);

private:
    [[nodiscard]] Coverage coverage_at(std::int64_t column) const;

    const Problem& problem_;
    const Sequence& sequence_;
    std::int64_t head_;
    std::int64_t row_;
    std::int64_t rows_;
    std::int64_t column_ = 0;  // next tile to look at
    std::int64_t end_ = 0;
};

/// Visits the tiles of one row block that have anything to attend to, in order of keys.
template <class Visit>
void for_each_tile(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t row,
                   std::int64_t rows, const Visit& visit) {
    KeyRanges ranges(problem, sequence, head, row, rows);
    for (KeyRange range; ranges.next(range);) {
        for (std::int64_t column = range.begin; column < range.end; column += kKeyTile) {
            const bool full = range.full && !problem.masks_single_scores();
            visit(Tile{&sequence, head, row, rows, column, std::min(kKeyTile, range.end - column), full});
        }
    }
}

/// The tile's coverage by closed-form masks and block lists.
[[nodiscard]] Coverage coverage(const Problem& problem, const Tile& tile);

/// Of the first `count` columns of a tile.
[[nodiscard]] constexpr std::uint64_t column_bits(std::int64_t count) noexcept {
    return count >= kKeyTile ? ~std::uint64_t{0} : (std::uint64_t{1} << static_cast<unsigned>(count)) - 1;
}

/// How much of a tile of `columns` its rows' words leave.
[[nodiscard]] Coverage coverage_of(std::span<const std::uint64_t> allowed, std::int64_t columns);

/// The kernels' verb of the name.
using KeepTrue = void (*)(std::uint64_t* allowed, const std::uint8_t* bytes, std::int64_t stride, std::int64_t rows);

/// Bit c of allowed[r] ← whether row r may attend to column c of the tile, by everything but the bias and the score
/// function; 0 past its columns.
void fill_allowed(const Problem& problem, const Tile& tile, KeepTrue keep, std::uint64_t* allowed);

}  // namespace qkv::detail
