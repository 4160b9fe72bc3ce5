#include "attention/mask_ranges.hpp"

#include <algorithm>

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

/// Bits of the columns whose blocks are on the list.
std::uint64_t listed_bits(std::span<const std::int64_t> list, std::int64_t block, const Tile& tile) {
    std::uint64_t bits = 0;
    const std::int64_t end = tile.column + tile.columns;
    for (std::int64_t key = tile.column; key < end;) {
        const std::int64_t next = std::min(end, (key / block + 1) * block);
        if (std::ranges::binary_search(list, key / block)) {
            bits |= column_bits(next - tile.column) & ~column_bits(key - tile.column);
        }
        key = next;
    }
    return bits;
}

/// Leaves of the tile's words what the boolean mask allows.
void keep_true(const ConstTensorView& view, const Tile& tile, KeepTrue keep, std::uint64_t* allowed) {
    const Sequence& sequence = *tile.sequence;
    const auto row = [&](std::int64_t r) {
        return reinterpret_cast<const std::uint8_t*>(
            view.at(sequence.batch, tile.head, sequence.query_start + tile.row + r, sequence.key_start + tile.column));
    };
    if (view.strides[3] == 1 && tile.columns == kKeyTile) {
        return keep(allowed, row(0), view.strides[2], tile.rows);
    }
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        std::uint8_t bytes[kKeyTile] = {};
        const std::uint8_t* from = row(r);
        for (std::int64_t c = 0; c < tile.columns; ++c) {
            bytes[c] = from[c * view.strides[3]];
        }
        keep(allowed + r, bytes, 0, 1);
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

Coverage coverage_of(std::span<const std::uint64_t> allowed, std::int64_t columns) {
    std::uint64_t any = 0;
    std::uint64_t all = column_bits(columns);
    for (const std::uint64_t word : allowed) {
        any |= word;
        all &= word;
    }
    return any == 0 ? Coverage::none : all == column_bits(columns) ? Coverage::full : Coverage::partial;
}

void fill_allowed(const Problem& problem, const Tile& tile, KeepTrue keep, std::uint64_t* allowed) {
    const Mask& mask = problem.mask;
    const bool inside = closed_form_coverage(tile) == Coverage::full;
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        allowed[r] = column_bits(tile.columns);
        if (!inside) {
            const KeyRange range = row_columns(*tile.sequence, tile.row + r);
            const std::int64_t begin = std::clamp<std::int64_t>(range.begin - tile.column, 0, tile.columns);
            const std::int64_t end = std::clamp<std::int64_t>(range.end - tile.column, begin, tile.columns);
            allowed[r] &= column_bits(end) & ~column_bits(begin);
        }
        if (mask.block_list) {
            allowed[r] &= listed_bits(listed_blocks(problem, tile, tile.row + r), mask.block_list->key_block, tile);
        }
    }
    if (mask.allowed_view) {
        keep_true(*mask.allowed_view, tile, keep, allowed);
    }
}

}  // namespace qkv::detail
