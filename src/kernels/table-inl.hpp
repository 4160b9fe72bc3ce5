// The tables of the instruction set that is being compiled for.
#pragma once

#include <cassert>

#include "kernels/draws-inl.hpp"
#include "kernels/dropout-inl.hpp"
#include "kernels/layers-inl.hpp"
#include "kernels/multiply-inl.hpp"
#include "kernels/products-inl.hpp"
#include "kernels/rows-inl.hpp"
#include "kernels/softmax-inl.hpp"
#include "kernels/stored_keys-inl.hpp"
#include "kernels/tables.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

// Forward's operands: queries as they are, keys transposed, both keys and values in panels as wide as a block of the
// product.

inline void Nothing() {}
inline std::int64_t NoRoom(std::int64_t /*width*/) { return 0; }
inline std::int64_t KeyRoom(std::int64_t width) { return kKeyTile * padded(width); }
template <class A>
std::int64_t ValueRoom(std::int64_t width) {
    return kKeyTile * ((padded(width) + kPanel<A> - 1) / kPanel<A> * kPanel<A>);
}

template <class A>
const A* Numbers(const Rows& rows) {
    return reinterpret_cast<const A*>(rows.data);
}

/// visit(the rows' numbers as they are stored) where that is a type that vectors of A are read from; whether it is.
template <class A, class Visit>
bool WithVectors(const Rows& rows, const Visit& visit) {
    bool reads = false;
    detail::with_storage(rows.dtype, rows.data, [&]<class T>(const T* numbers) {
        if constexpr (kVectorised<A, T>) {
            visit(numbers);
            reads = true;
        }
    });
    return reads;
}

/// Wherever the rows lie: nothing of them is anything but whole vectors.
template <class A>
bool Packs(const Rows& rows, std::int64_t width) {
    return width == padded(width) && WithVectors<A>(rows, [](const auto* /*numbers*/) {});
}

template <class A>
const A* AsTheyAre(A* /*room*/, const Rows& rows, std::int64_t /*width*/) {
    return Numbers<A>(rows);
}
template <class A>
const A* SumsOfAsTheyAre(A* /*room*/, const A* rows, std::int64_t /*count*/, std::int64_t /*width*/) {
    return rows;
}

template <class A>
const A* PackKeys(A* room, std::int64_t first, const Rows& rows, std::int64_t width, Ahead* ahead) {
    [[maybe_unused]] const bool reads = WithVectors<A>(rows, [&](const auto* from) {
        TransposeToPanels<A, kPanel<A>>(room, first, from, rows.stride, rows.rows, width, ahead);
    });
    assert(reads);
    return room;
}

/// room: panels (kKeyTile, kPanel) of the values, one after another.
template <class A>
const A* PackValues(A* room, const Rows& rows, std::int64_t width) {
    [[maybe_unused]] const bool reads = WithVectors<A>(rows, [&](const auto* from) HWY_ATTR {
        A* panel = room;
        for (std::int64_t first = 0; first < padded(width); first += kPanel<A>, panel += kKeyTile * kPanel<A>) {
            const std::int64_t columns = std::min(kPanel<A>, padded(width) - first);
            for (std::int64_t r = 0; r < rows.rows; ++r) {
                for (std::int64_t c = 0; c < columns; c += kWidth<A>) {
                    hn::Store(LoadVector<A>(from + r * rows.stride + first + c), Tag<A>(), panel + r * kPanel<A> + c);
                }
            }
        }
    });
    assert(reads);
    return room;
}

/// visit(first row, rows, columns) for all rows at once, or under a diagonal for blocks of them, whose columns are even
/// in number where there is another one. At most `least` columns are not worth it.
template <class Visit>
HWY_INLINE void ForRowBlocks(const Columns& columns, std::int64_t rows, const Visit& visit, std::int64_t least = 0) {
    if (!columns.slanted() || columns.all <= least) {
        visit(std::int64_t{0}, rows, columns.all);
        return;
    }
    for (std::int64_t first = 0; first < rows; first += kBlockRows) {
        const std::int64_t count = std::min<std::int64_t>(kBlockRows, rows - first);
        const std::int64_t here = columns.of_row(first + count - 1);
        if (here > 0) {
            visit(first, count, std::min(columns.all, here + here % 2));
        }
    }
}

/// The same for blocks of columns and the rows that they meet: visit(first column, columns, first row), which is even.
template <class Visit>
HWY_INLINE void ForColumnBlocks(const Columns& columns, std::int64_t rows, const Visit& visit) {
    if (!columns.slanted()) {
        visit(std::int64_t{0}, columns.all, std::int64_t{0});
        return;
    }
    for (std::int64_t first = 0; first < columns.all; first += kBlockRows) {
        const std::int64_t from = columns.first_row(first) / 2 * 2;
        if (from < rows) {
            visit(first, std::min<std::int64_t>(kBlockRows, columns.all - first), from);
        }
    }
}

template <class A>
void MultiplyKeys(A* scores, const A* queries, const A* keys, std::int64_t rows, Columns columns, std::int64_t width,
                  Ahead* ahead) {
    const auto multiply = [&](std::int64_t first, std::int64_t count, std::int64_t here) HWY_ATTR {
        Multiply(scores + first * kKeyTile, kKeyTile, Left<A>{queries + first * padded(width), padded(width), 1},
                 Right<A>{keys, kPanel<A>, kPanel<A> * padded(width)}, count, width, padded(here), ahead);
    };
    ForRowBlocks(columns, rows, multiply, kWidth<A>);
}

template <class A>
void AddValues(A* context, const A* weights, const A* values, std::int64_t rows, Columns columns, std::int64_t width) {
    ForRowBlocks(columns, rows, [&](std::int64_t first, std::int64_t count, std::int64_t here) HWY_ATTR {
        MultiplyAdd(context + first * padded(width), padded(width), Left<A>{weights + first * kKeyTile, kKeyTile, 1},
                    Right<A>{values, kPanel<A>, kPanel<A> * kKeyTile}, count, here, padded(width));
    });
}

/// Keys as they are stored, of types whose vectors are read as such.
template <class A>
bool TakesStoredKeys(const Rows& keys, std::int64_t width) {
    return kFewKeyRows<A> > 0 && Packs<A>(keys, width);
}

template <class A>
void MultiplyStoredKeys(A* scores, const A* queries, std::int64_t first, const Rows& keys, std::int64_t rows,
                        std::int64_t width, Ahead* ahead) {
    assert(first % kLanes == 0 && 1 <= rows && rows <= kFewKeyRows<A>);
    if constexpr (kFewKeyRows<A> > 0) {
        [[maybe_unused]] const bool reads = WithVectors<A>(keys, [&]<class T>(const T* from) {
            MultiplyStored(scores + first, Left<A>{queries, padded(width), 1},
                           StoredKeys<T>{from, keys.stride, keys.rows}, rows, width, ahead);
        });
        assert(reads);
    }
}

/// Packing is worth its while where rows are many, or registers so few that a block of rows passes the values often.
inline constexpr std::int64_t kFewValueRows = kBlockColumns > 2 ? kQueryTile : 4 * kBlockRows;

template <class A>
bool TakesStoredValues(const Rows& values, std::int64_t width, bool /*last*/) {
    return Packs<A>(values, width);
}

template <class A>
void AddStoredValues(A* context, const A* weights, std::int64_t first, const Rows& values, std::int64_t rows,
                     std::int64_t width, Ahead* ahead) {
    assert(1 <= rows && rows <= kFewValueRows);
    [[maybe_unused]] const bool reads = WithVectors<A>(values, [&]<class T>(const T* from) {
        MultiplyAndAsk<A, true, 8>(context, padded(width), Left<A>{weights + first, kKeyTile, 1},
                                   Right<T>{from, values.stride, kPanel<A>}, rows, values.rows, padded(width),
                                   blocks_of<kBlockRows>(rows), ahead);
    });
    assert(reads);
}

/// context += weights · values of a tile that are not packed.
template <class A, class AddStored>
void AddStoredToBlocks(const AttendedRows<A>& rows, const AttendedKeys<A>& tile, const A* weights,
                       const AddStored& add) {
    ForRowBlocks(tile.columns, rows.rows, [&](std::int64_t first, std::int64_t count, std::int64_t here) {
        Rows values = tile.stored_values;
        values.rows = here;
        add(rows.context + first * padded(rows.value_dim), weights + first * kKeyTile, 0, values, count, rows.value_dim,
            tile.ahead);
    });
}

template <class A>
void Attend(const AttendedRows<A>& rows, const AttendedKeys<A>* tiles, std::int64_t count, A* scores) {
    for (std::int64_t tile = 0; tile < count; ++tile) {
        if (tiles[tile].keys != nullptr) {
            MultiplyKeys(scores, rows.queries, tiles[tile].keys, rows.rows, tiles[tile].columns, rows.head_dim,
                         tiles[tile].ahead);
        } else {
            MultiplyStoredKeys(scores, rows.queries, 0, tiles[tile].stored_keys, rows.rows, rows.head_dim,
                               tiles[tile].ahead);
        }
        if (rows.finish.apply != nullptr) {
            rows.finish.apply(rows.finish.with, tile, scores);
        }
        Soften<A, ExactWeights<A>>(scores, scores, rows.scale, nullptr, rows.softmax, rows.context, rows.value_dim,
                                   rows.rows, tiles[tile].columns.all);
        if (tiles[tile].values != nullptr) {
            AddValues(rows.context, scores, tiles[tile].values, rows.rows, tiles[tile].columns, rows.value_dim);
        } else {
            AddStoredToBlocks(rows, tiles[tile], scores, AddStoredValues<A>);
        }
    }
}

// Backward's: weights and rows as they are, walked the other way.

template <class A>
void AsItIs(A* /*weights*/, std::int64_t /*rows*/) {}

template <class A>
const A* WeightsAsTheyAre(A* /*room*/, const A* weights, std::int64_t /*rows*/) {
    return weights;
}

template <class A>
void AddOverQueries(A* sums, const A* weights, const A* packed, std::int64_t rows, Columns columns,
                    std::int64_t width) {
    ForColumnBlocks(columns, rows, [&](std::int64_t first, std::int64_t count, std::int64_t from) HWY_ATTR {
        MultiplyAdd(
            sums + first * padded(width), padded(width), Left<A>{weights + from * kKeyTile + first, 1, kKeyTile},
            Right<A>{packed + from * padded(width), padded(width), kPanel<A>}, count, rows - from, padded(width));
    });
}

template <class A>
const A* SumsAsTheyAre(A* /*room*/, const A* sums, std::int64_t /*width*/) {
    return sums;
}

template <class A>
constexpr Kernels<A> MakeTable() {
    return {.enter = Nothing,
            .leave = Nothing,
            .load = Load<A>,
            .store = Store<A>,
            .dot_rows = DotRows<A>,
            .scales_queries = true,
            .query_room = NoRoom,
            .key_room = KeyRoom,
            .value_room = ValueRoom<A>,
            .packs = Packs<A>,
            .pack_queries = AsTheyAre<A>,
            .pack_keys = PackKeys<A>,
            .pack_values = PackValues<A>,
            .multiply_keys = MultiplyKeys<A>,
            .add_values = AddValues<A>,
            .few_key_rows = kFewKeyRows<A>,
            .takes_stored_keys = TakesStoredKeys<A>,
            .multiply_stored_keys = MultiplyStoredKeys<A>,
            .few_value_rows = kFewValueRows,
            .takes_stored_values = TakesStoredValues<A>,
            .add_stored_values = AddStoredValues<A>,
            .attended_scores = 1,
            .attend = Attend<A>,
            .round_weights = AsItIs<A>,
            .pack_weights = WeightsAsTheyAre<A>,
            .query_sum_room = NoRoom,
            .pack_query_sums = SumsOfAsTheyAre<A>,
            .add_over_queries = AddOverQueries<A>,
            .sums_transposed = false,
            .sums_as_rows = SumsAsTheyAre<A>,
            .scale = Scale<A>,
            .cap = Cap<A>,
            .add = Add<A>,
            .slope = Slope<A>,
            .mask = Mask<A>,
            .keep_true = KeepTrue,
            .keep_unmasked = KeepUnmasked<A>,
            .soften = Soften<A, ExactWeights<A>>,
            .draw_factors = DrawFactors<A>,
            .weigh = Weigh<A, ExactWeights<A>>,
            .score_gradients = ScoreGradients<A, ExactWeights<A>>};
}

constexpr Tables MakeTables() {
    return {.f32 = MakeTable<float>(),
            .f64 = MakeTable<double>(),
            .products_f32 = MakeProducts<float>(),
            .products_f64 = MakeProducts<double>(),
            .layers_f32 = MakeLayers<float>(),
            .layers_f64 = MakeLayers<double>(),
            .draws = MakeDraws()};
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
