#include "attention/mask_ranges.hpp"

#include <algorithm>
#include <cstring>

namespace qkv::detail {

namespace {

/// Columns that row `row` may attend to, by the closed-form masks.
KeyRange row_columns(const Sequence& sequence, std::int64_t row) {
    const std::int64_t begin = std::max(sequence.first_key, row + sequence.low);
    return {begin, std::max(begin, std::min(sequence.end_key, row + sequence.high + 1)), false};
}

/// Ascending key blocks of the query block that holds `row`.
std::span<const std::int64_t> listed_blocks(const Problem& problem, const Tile& tile, std::int64_t row) {
    const BlockList& blocks = *problem.mask.block_list;
    const std::int64_t lists_per_head =
        static_cast<std::int64_t>(blocks.starts.size() - 1) / (blocks.sequences * blocks.heads);
    const std::int64_t sequence = blocks.sequences == 1 ? 0 : tile.sequence->index;
    const std::int64_t head = blocks.heads == 1 ? 0 : tile.head;
    const auto list =
        static_cast<std::size_t>((sequence * blocks.heads + head) * lists_per_head + row / blocks.query_block);
    const auto begin = static_cast<std::size_t>(blocks.starts[list]);
    return blocks.key_blocks.subspan(begin, static_cast<std::size_t>(blocks.starts[list + 1]) - begin);
}

Coverage block_coverage(const Problem& problem, const Tile& tile) {
    const BlockList& blocks = *problem.mask.block_list;
    const std::int64_t first_block = tile.column / blocks.key_block;
    const std::int64_t last_block = (tile.column + tile.columns - 1) / blocks.key_block;
    bool any = false;
    bool all = true;
    for (std::int64_t row = tile.row; row < tile.row + tile.rows;
         row += blocks.query_block - row % blocks.query_block) {
        const auto list = listed_blocks(problem, tile, row);
        const auto first = std::ranges::lower_bound(list, first_block);
        const auto last = std::upper_bound(first, list.end(), last_block);
        any = any || first != last;
        all = all && last - first == last_block - first_block + 1;
    }
    if (!any) {
        return Coverage::none;
    }
    return all ? Coverage::full : Coverage::partial;
}

Coverage closed_form_coverage(const Tile& tile) {
    // Along a diagonal band the first row starts first and the last row ends last.
    const KeyRange first = row_columns(*tile.sequence, tile.row);
    const KeyRange last = row_columns(*tile.sequence, tile.row + tile.rows - 1);
    const std::int64_t tile_end = tile.column + tile.columns;
    if (tile_end <= first.begin || tile.column >= last.end || last.end <= first.begin) {
        return Coverage::none;
    }
    return tile.column >= last.begin && tile_end <= first.end ? Coverage::full : Coverage::partial;
}

/// Takes out of columns [begin, end) what `source` does not allow.
inline void take_allowed(std::uint8_t* __restrict row, const std::uint8_t* __restrict source, std::int64_t step,
                         std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
        row[c] &= source[c * step] != 0 ? 1 : 0;
    }
}

}  // namespace

Coverage coverage(const Problem& problem, const Tile& tile) {
    const Coverage closed_form = closed_form_coverage(tile);
    if (closed_form == Coverage::none || !problem.mask.block_list) {
        return closed_form;
    }
    return std::min(closed_form, block_coverage(problem, tile));
}

KeyRange needed_keys(const Sequence& sequence, std::int64_t row, std::int64_t rows) {
    if (rows == 0) {
        return {};
    }
    // A last row that begins past the last key ends where it begins.
    return {row_columns(sequence, row).begin, std::min(sequence.end_key, row_columns(sequence, row + rows - 1).end),
            false};
}

KeyRanges::KeyRanges(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t row,
                     std::int64_t rows)
    : problem_(problem), sequence_(sequence), head_(head), row_(row), rows_(rows) {
    const KeyRange needed = needed_keys(sequence, row, rows);
    column_ = needed.begin / kKeyTile * kKeyTile;
    end_ = needed.end;
}

Coverage KeyRanges::coverage_at(std::int64_t column) const {
    const std::int64_t columns = std::min(kKeyTile, end_ - column);
    return coverage(problem_, {&sequence_, head_, row_, rows_, column, columns, false});
}

bool KeyRanges::next(KeyRange& range) {
    Coverage here = Coverage::none;
    while (column_ < end_ && (here = coverage_at(column_)) == Coverage::none) {
        column_ += kKeyTile;
    }
    if (column_ >= end_) {
        return false;
    }
    range.begin = column_;
    do {
        column_ += kKeyTile;
    } while (column_ < end_ && coverage_at(column_) == here);
    range.end = std::min(column_, end_);
    range.full = here == Coverage::full;
    return true;
}

Coverage fill_allowed(const Problem& problem, const Tile& tile, std::uint8_t* allowed) {
    const Sequence& sequence = *tile.sequence;
    const Mask& mask = problem.mask;
    std::memset(allowed, 0, static_cast<std::size_t>(tile.rows * kKeyTile));
    bool any = false;
    bool all = true;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        std::uint8_t* row = allowed + r * kKeyTile;
        const KeyRange range = row_columns(sequence, tile.row + r);
        const std::int64_t begin = std::clamp<std::int64_t>(range.begin - tile.column, 0, tile.columns);
        const std::int64_t end = std::clamp<std::int64_t>(range.end - tile.column, begin, tile.columns);
        std::memset(row + begin, 1, static_cast<std::size_t>(end - begin));
        if (mask.block_list) {
            const auto list = listed_blocks(problem, tile, tile.row + r);
            for (std::int64_t c = begin; c < end; ++c) {
                row[c] = std::ranges::binary_search(list, (tile.column + c) / mask.block_list->key_block) ? 1 : 0;
            }
        }
        if (mask.allowed_view) {
            const ConstTensorView& view = *mask.allowed_view;
            const auto* source = reinterpret_cast<const std::uint8_t*>(view.at(
                sequence.batch, tile.head, sequence.query_start + tile.row + r, sequence.key_start + tile.column));
            const std::int64_t step = view.strides[3];
            // A whole row of a tile, whose length the compiler knows, takes a few vectors.
            if (step == 1 && begin == 0 && end == kKeyTile) {
                take_allowed(row, source, 1, 0, kKeyTile);
            } else {
                take_allowed(row, source, step, begin, end);
            }
        }
        const bool some = std::memchr(row, 1, static_cast<std::size_t>(tile.columns)) != nullptr;
        any = any || some;
        all = all && some && std::memchr(row, 0, static_cast<std::size_t>(tile.columns)) == nullptr;
    }
    return !any ? Coverage::none : all ? Coverage::full : Coverage::partial;
}

}  // namespace qkv::detail
