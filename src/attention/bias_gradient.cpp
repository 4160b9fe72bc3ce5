// The gradient of an additive bias, summed over the dimensions along which the bias is repeated.
#include <numeric>

#include "attention/backward_tile.hpp"
#include "core/check.hpp"

namespace qkv::detail {

namespace {

/// A half-open range of indices.
struct Span {
    std::int64_t begin = 0;
    std::int64_t end = 0;
};

/// Which part of dbias an item owns: everything that lies in these ranges adds into the same tile of it.
struct BiasItem {
    Span sequences;
    Span heads;
    Span rows;     // of each sequence
    Span columns;  // of each sequence
};

/// How dbias is cut. A dimension that the bias is repeated along is not cut: its one owner walks over it. A packed
/// batch is cut into its sequences as soon as queries or keys are kept apart.
class BiasItems {
public:
    BiasItems(const Problem& problem, const TensorView& dbias)
        : problem_(problem),
          by_head_(dbias.size(1) == problem.heads),
          by_row_(dbias.size(2) == problem.queries),
          by_column_(dbias.size(3) == problem.keys),
          by_sequence_(problem.packed() ? by_row_ || by_column_ : dbias.size(0) == problem.batch) {
        row_items_ = by_row_ ? (by_sequence_ ? tile_count(problem) : tiles_of(problem.queries, kQueryTile))
                             : (by_sequence_ ? problem.sequences : 1);
        column_items_ = by_column_ ? tiles_of(longest_keys(), kKeyTile) : 1;
        head_items_ = by_head_ ? problem.heads : 1;
    }

    [[nodiscard]] std::int64_t count() const {
        return checked_multiply(checked_multiply(row_items_, column_items_, "tiles of dbias"), head_items_,
                                "tiles of dbias");
    }

    [[nodiscard]] BiasItem item(std::int64_t number) const {
        const std::int64_t head = number % head_items_;
        const std::int64_t column = number / head_items_ % column_items_ * kKeyTile;
        const std::int64_t rest = number / head_items_ / column_items_;
        BiasItem item;
        item.heads = by_head_ ? Span{head, head + 1} : Span{0, problem_.heads};
        item.columns = by_column_ ? Span{column, column + kKeyTile} : Span{0, problem_.keys};
        item.rows = Span{0, problem_.queries};
        item.sequences = Span{0, problem_.sequences};
        if (by_row_ && by_sequence_) {
            const TokenTile tile = locate_tile(problem_, rest);
            item.sequences = {tile.sequence.index, tile.sequence.index + 1};
            item.rows = {tile.begin, tile.begin + std::max<std::int64_t>(0, tile.count)};
        } else if (by_row_) {
            item.rows = {rest * kQueryTile, (rest + 1) * kQueryTile};
        } else if (by_sequence_) {
            item.sequences = {rest, rest + 1};
        }
        return item;
    }

    [[nodiscard]] bool by_row() const noexcept { return by_row_; }
    [[nodiscard]] bool by_column() const noexcept { return by_column_; }

private:
    [[nodiscard]] std::int64_t longest_keys() const {
        std::int64_t longest = 0;
        for (std::int64_t index = 0; index < problem_.sequences; ++index) {
            longest = std::max(longest, sequence_of(problem_, index).keys);
        }
        return longest;
    }

    const Problem& problem_;
    bool by_head_;
    bool by_row_;
    bool by_column_;
    bool by_sequence_;
    std::int64_t row_items_ = 0;
    std::int64_t column_items_ = 0;
    std::int64_t head_items_ = 0;
};

/// scratch.d_bias += the tile's score gradients, rows or columns added up where dbias has one of them.
template <class A>
void add_tile(const BiasItems& items, const Tile& tile, const BackwardScratch<A>& scratch) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        double* __restrict__ to = scratch.d_bias + (items.by_row() ? r * kKeyTile : 0);
        const A* from = scratch.d_scores + r * kKeyTile;
        if (items.by_column()) {
            for (std::int64_t c = 0; c < tile.columns; ++c) {
                to[c] += static_cast<double>(from[c]);
            }
        } else {
            *to = std::accumulate(from, from + tile.columns, *to);
        }
    }
}

/// Walks over all that adds into one item, in the order of sequences, heads, rows, columns.
template <class A>
void bias_item(const BackwardSetup<A>& setup, const BiasItems& items, const BiasItem& item,
               const RowStatistics<A>& statistics, BackwardScratch<A>& scratch) {
    const BackwardCall& call = setup.call;
    const Problem& problem = call.problem;
    // The first sequence of the item stands for all that share its part of dbias.
    const Sequence first = sequence_of(problem, item.sequences.begin);
    const std::int64_t rows = items.by_row() ? std::min(item.rows.end, first.queries) - item.rows.begin : 1;
    const std::int64_t columns = items.by_column() ? std::min(item.columns.end, first.keys) - item.columns.begin : 1;
    if (rows <= 0 || columns <= 0) {
        return;
    }
    std::fill_n(scratch.d_bias, kQueryTile * kKeyTile, 0.0);
    for (std::int64_t index = item.sequences.begin; index < item.sequences.end; ++index) {
        const Sequence sequence = sequence_of(problem, index);
        const std::int64_t last_row = std::min(item.rows.end, sequence.queries);
        for (std::int64_t head = item.heads.begin; head < item.heads.end; ++head) {
            for (std::int64_t row = item.rows.begin; row < last_row; row += kQueryTile) {
                const std::int64_t tile_rows = std::min(kQueryTile, last_row - row);
                bool loaded = false;
                for_each_tile(problem, sequence, head, row, tile_rows, [&](Tile tile) {
                    if (tile.column < item.columns.begin || tile.column >= item.columns.end ||
                        !prepare_mask(problem, setup.kernels, tile, scratch.scores)) {
                        return;
                    }
                    if (!loaded) {
                        load_query_side(setup, sequence, head, row, tile_rows, 0, scratch);
                        loaded = true;
                    }
                    load_key_side(setup, sequence, head / problem.group, tile.column, tile.columns, scratch);
                    bias_gradient_tile(setup, tile, scratch.tiles[0], statistics, scratch);
                    add_tile(items, tile, scratch);
                });
            }
        }
    }
    const TensorView& dbias = *call.gradients.dbias;
    const std::int64_t batch = dbias.size(0) == 1 ? 0 : first.batch;
    const std::int64_t row = items.by_row() ? first.query_start + item.rows.begin : 0;
    const std::int64_t column = items.by_column() ? first.key_start + item.columns.begin : 0;
    const std::int64_t head = dbias.size(1) == 1 ? 0 : item.heads.begin;
    for (std::int64_t r = 0; r < rows; ++r) {
        store(dbias.at(batch, head, row + r, column), dbias.dtype, dbias.strides[3], scratch.d_bias + r * kKeyTile,
              columns);
    }
}

}  // namespace

template <class A>
void run_bias_pass(const BackwardSetup<A>& setup, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
                   const RowStatistics<A>& statistics) {
    const BackwardCall& call = setup.call;
    const TensorView& dbias = *call.gradients.dbias;
    if (call.problem.packed() || call.problem.sequences == 0) {  // where sequences do not meet, nobody owns it: it is 0
        for (std::int64_t row = 0; row < dbias.size(0) * dbias.size(1) * dbias.size(2); ++row) {
            const std::int64_t head = row / dbias.size(2);
            clear_bias_row(dbias, head / dbias.size(1), head % dbias.size(1), row % dbias.size(2));
        }
    }
    if (call.problem.sequences == 0) {
        return;
    }
    const BiasItems items(call.problem, dbias);
    run_items<BackwardScratch<A>>(setup, plan, workspace, runtime, items.count(),
                                  [&](BackwardScratch<A>& scratch, std::int64_t number) {
                                      bias_item(setup, items, items.item(number), statistics, scratch);
                                  });
}

template void run_bias_pass<float>(const BackwardSetup<float>&, const Plan&, const Workspace&, const Runtime&,
                                   const RowStatistics<float>&);
template void run_bias_pass<double>(const BackwardSetup<double>&, const Plan&, const Workspace&, const Runtime&,
                                    const RowStatistics<double>&);

}  // namespace qkv::detail
