// Packing, and tiles of a product of packed panels.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/multiply-inl.hpp"
#include "kernels/products.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

// Fewer columns than attention's block has, so that a chunk of a right panel stays in the first-level cache beside
// everything else, and more rows, so that `left`, which streams from the second level, is read less often.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr unsigned kTallest = 12;
#else
inline constexpr unsigned kTallest = 6;
#endif
inline constexpr unsigned kWidest = 2;

#if HWY_TARGET != HWY_SCALAR
/// kBlocks 128-bit blocks as one vector, block i from data + i · step.
template <unsigned kBlocks, class A>
HWY_INLINE auto LoadBlocks(const A* data, std::int64_t step) {
    const hn::FixedTag<A, kBlocks * 16 / sizeof(A)> d;
    if constexpr (kBlocks == 1) {
        return hn::LoadU(d, data);
    } else {
        constexpr unsigned kHalf = kBlocks / 2;
        return hn::Combine(d, LoadBlocks<kHalf>(data + kHalf * step, step), LoadBlocks<kHalf>(data, step));
    }
}

/// As many rows as kBlocks blocks hold numbers, as many columns as one holds: to (columns, width) ← fromᵀ.
template <unsigned kBlocks>
HWY_INLINE void TransposeBlocks(float* HWY_RESTRICT to, std::int64_t width, const float* HWY_RESTRICT from,
                                std::int64_t row_step) {
    const hn::FixedTag<float, kBlocks * 4> d;
    const hn::Repartition<std::uint64_t, decltype(d)> d64;
    const auto a = LoadBlocks<kBlocks>(from, 4 * row_step);
    const auto b = LoadBlocks<kBlocks>(from + row_step, 4 * row_step);
    const auto c = LoadBlocks<kBlocks>(from + 2 * row_step, 4 * row_step);
    const auto e = LoadBlocks<kBlocks>(from + 3 * row_step, 4 * row_step);
    const auto ab_low = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ce_low = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto ce_high = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_low, ce_low)), d, to);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_low, ce_low)), d, to + width);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_high, ce_high)), d, to + 2 * width);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_high, ce_high)), d, to + 3 * width);
}

template <unsigned kBlocks>
HWY_INLINE void TransposeBlocks(double* HWY_RESTRICT to, std::int64_t width, const double* HWY_RESTRICT from,
                                std::int64_t row_step) {
    const hn::FixedTag<double, kBlocks * 2> d;
    const auto a = LoadBlocks<kBlocks>(from, 2 * row_step);
    const auto b = LoadBlocks<kBlocks>(from + row_step, 2 * row_step);
    hn::StoreU(hn::InterleaveLower(d, a, b), d, to);
    hn::StoreU(hn::InterleaveUpper(d, a, b), d, to + width);
}

/// Rows from `done` on, as many at a time as a vector holds, then half as many, and so on. Returns how many are done.
template <class A, unsigned kBlocks = kWidth<A> * sizeof(A) / 16>
std::int64_t TransposeRows(A* to, std::int64_t width, const Strided<A>& from, std::int64_t rows, std::int64_t columns,
                           std::int64_t done = 0) {
    constexpr auto kSquare = static_cast<std::int64_t>(16 / sizeof(A));
    constexpr std::int64_t kRows = kBlocks * kSquare;
    constexpr auto kLine = static_cast<std::int64_t>(64 / sizeof(A));
    const std::int64_t whole = columns / kSquare * kSquare;
    for (; done + kRows <= rows; done += kRows) {
        const A* first = from.data + done * from.row_step;
        for (std::int64_t k = 0; k < whole; k += kSquare) {
            if (k % kLine == 0) {  // sixteen rows at once are more than the machine's own prefetching follows
                for (std::int64_t r = 0; r < kRows; ++r) {
                    __builtin_prefetch(first + r * from.row_step + k + 4 * kLine);
                }
            }
            TransposeBlocks<kBlocks>(to + k * width + done, width, first + k, from.row_step);
        }
        for (std::int64_t k = whole; k < columns; ++k) {
            for (std::int64_t r = 0; r < kRows; ++r) {
                to[k * width + done + r] = first[r * from.row_step + k];
            }
        }
    }
    if constexpr (kBlocks > 1) {
        return TransposeRows<A, kBlocks / 2>(to, width, from, rows, columns, done);
    } else {
        return done;
    }
}
#else
template <class A>
std::int64_t TransposeRows(A* /*to*/, std::int64_t /*width*/, const Strided<A>& /*from*/, std::int64_t /*rows*/,
                           std::int64_t /*columns*/) {
    return 0;
}
#endif

/// A whole panel whose rows lie side by side in memory, copied column by column.
template <std::int64_t kPanel, class A>
void CopyPanel(A* HWY_RESTRICT to, const Strided<A>& from, std::int64_t columns) {
    for (std::int64_t k = 0; k < columns; ++k) {
        std::memcpy(to + k * kPanel, from.data + k * from.column_step, kPanel * sizeof(A));
    }
}

template <class A>
void Pack(A* HWY_RESTRICT to, std::int64_t width, const Strided<A>& from, std::int64_t rows, std::int64_t columns) {
    std::int64_t done = 0;  // rows
    if (from.column_step == 1) {
        done = TransposeRows(to, width, from, rows, columns);
    } else if (rows == kTallest && width == kTallest) {
        CopyPanel<kTallest>(to, from, columns);
        done = rows;
    } else if (rows == kWidest * kWidth<A> && width == rows) {
        CopyPanel<kWidest * kWidth<A>>(to, from, columns);
        done = rows;
    }
    for (std::int64_t k = 0; k < columns && done < width; ++k) {
        for (std::int64_t r = done; r < width; ++r) {
            to[k * width + r] = r < rows ? from.data[r * from.row_step + k * from.column_step] : A(0);
        }
    }
}

/// A tile that c has not room for: its first `columns`, number by number.
template <class A>
HWY_NOINLINE void FinishNarrow(const A* sums, std::int64_t sums_stride, A* c, std::int64_t c_stride, std::int64_t rows,
                               std::int64_t columns, const Finish<A>& finish) {
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t j = 0; j < columns; ++j) {
            A& at = c[r * c_stride + j];
            const A sum = finish.add ? at + sums[r * sums_stride + j] : sums[r * sums_stride + j];
            at = finish.bias != nullptr ? sum + finish.bias[j] : sum;
        }
    }
}

/// change(sum, its row, its vector in the row) for all of a tile.
template <class A, unsigned kRows, unsigned kColumns, class Change>
HWY_INLINE void ForTile(Vec<A> (&sums)[kRows][kColumns], const Change& change) {
    HWY_UNROLL(16)
    for (unsigned r = 0; r < kRows; ++r) {
        HWY_UNROLL(8)
        for (unsigned j = 0; j < kColumns; ++j) {
            change(sums[r][j], r, j * kWidth<A>);
        }
    }
}

template <class A, unsigned kRows, unsigned kColumns>
HWY_INLINE void FinishTile(Vec<A> (&sums)[kRows][kColumns], A* c, std::int64_t c_stride, std::int64_t columns,
                           const Finish<A>& finish) {
    const Tag<A> d;
    constexpr auto kStride = kColumns * kWidth<A>;
    if (columns != kStride) {
        alignas(64) A room[kRows * kStride];
        ForTile<A, kRows, kColumns>(
            sums, [&](Vec<A>& sum, unsigned r, std::int64_t j) HWY_ATTR { hn::Store(sum, d, room + r * kStride + j); });
        FinishNarrow(room, kStride, c, c_stride, kRows, columns, finish);
        return;
    }
    if (finish.add) {
        ForTile<A, kRows, kColumns>(sums, [&](Vec<A>& sum, unsigned r, std::int64_t j)
                                              HWY_ATTR { sum = hn::Add(hn::LoadU(d, c + r * c_stride + j), sum); });
    }
    if (finish.bias != nullptr) {
        ForTile<A, kRows, kColumns>(sums, [&](Vec<A>& sum, unsigned, std::int64_t j)
                                              HWY_ATTR { sum = hn::Add(sum, hn::LoadU(d, finish.bias + j)); });
    }
    ForTile<A, kRows, kColumns>(
        sums, [&](Vec<A>& sum, unsigned r, std::int64_t j) HWY_ATTR { hn::StoreU(sum, d, c + r * c_stride + j); });
}

/// kAdjacent: left's rows begin side by side, as packed ones do.
template <class A, bool kAdjacent, unsigned kRows, unsigned kColumns>
void MultiplyTile(A* c, std::int64_t c_stride, const Panels<A>& left, const A* right, std::int64_t columns,
                  std::int64_t inner, std::int64_t chain, const Finish<A>& finish) {
    const Tag<A> d;
    constexpr std::int64_t kRightStep = kWidest * kWidth<A>;
    Vec<A> sums[kRows][kColumns];
    HWY_UNROLL(16)
    for (unsigned r = 0; r < kRows; ++r) {  // c is on its way while the sums run
        __builtin_prefetch(c + r * c_stride, 1);
        __builtin_prefetch(c + r * c_stride + columns - 1, 1);
    }
    alignas(64) A total[kRows * kColumns * kWidth<A>];
    const auto at = [&total](unsigned r, std::int64_t j) HWY_ATTR { return total + r * kColumns * kWidth<A> + j; };
    Left<A> rows{left.data, kAdjacent ? 1 : left.row_step, left.term_step};
    const auto run = [&](std::int64_t count) HWY_ATTR {
        ForTile<A, kRows, kColumns>(sums, [d](Vec<A>& sum, unsigned, std::int64_t) HWY_ATTR { sum = hn::Zero(d); });
        MultiplyInto<A, kRows, kColumns, !kAdjacent>(sums, rows, right, kRightStep, count);
        rows.data += count * rows.inner_step;
        right += count * kRightStep;
    };
    std::int64_t done = std::min(chain, inner);
    run(done);
    while (done < inner) {
        ForTile<A, kRows, kColumns>(
            sums, [&](Vec<A>& sum, unsigned r, std::int64_t j) HWY_ATTR { hn::Store(sum, d, at(r, j)); });
        const std::int64_t count = std::min(chain, inner - done);
        run(count);
        ForTile<A, kRows, kColumns>(
            sums, [&](Vec<A>& sum, unsigned r, std::int64_t j) HWY_ATTR { sum = hn::Add(hn::Load(d, at(r, j)), sum); });
        done += count;
    }
    FinishTile<A, kRows, kColumns>(sums, c, c_stride, columns, finish);
}

/// All rows; the last ones, fewer than a panel has, in tiles of 8, 4, 2 and 1.
template <class A, bool kAdjacent, unsigned kColumns, unsigned kRows = kTallest>
void MultiplyTiles(A* c, std::int64_t c_stride, Panels<A> left, const A* right, std::int64_t rows, std::int64_t columns,
                   std::int64_t inner, std::int64_t chain, const Finish<A>& finish) {
    for (; rows >= kRows; rows -= kRows) {
        MultiplyTile<A, kAdjacent, kRows, kColumns>(c, c_stride, left, right, columns, inner, chain, finish);
        c += kRows * c_stride;
        left.data += kRows == kTallest ? left.panel_step : kRows * left.row_step;
    }
    if constexpr (kRows > 1) {
        if (rows > 0) {
            MultiplyTiles<A, kAdjacent, kColumns,
                          (kRows > 8   ? 8
                           : kRows > 4 ? 4
                                       : kRows / 2)>(c, c_stride, left, right, rows, columns, inner, chain, finish);
        }
    }
}

template <class A>
void MultiplyPanel(A* c, std::int64_t c_stride, const Panels<A>& left, const A* right, std::int64_t rows,
                   std::int64_t columns, std::int64_t inner, std::int64_t chain, const Finish<A>& finish) {
    static_assert(kWidest == 2);
    const bool wide = columns > kWidth<A>;
    const auto tiles = left.row_step == 1 ? (wide ? MultiplyTiles<A, true, 2> : MultiplyTiles<A, true, 1>)
                                          : (wide ? MultiplyTiles<A, false, 2> : MultiplyTiles<A, false, 1>);
    tiles(c, c_stride, left, right, rows, columns, inner, chain, finish);
}

/// kVectors of columns, in registers while the rows pass.
template <unsigned kVectors, class A>
HWY_INLINE void AddRowVectors(double* sums, const A* from, std::int64_t stride, std::int64_t rows) {
    const Tag<double> d;
    Vec<double> chains[kVectors];
    HWY_UNROLL(4)
    for (unsigned j = 0; j < kVectors; ++j) {
        chains[j] = hn::LoadU(d, sums + j * kWidth<double>);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
        HWY_UNROLL(4)
        for (unsigned j = 0; j < kVectors; ++j) {
            chains[j] = hn::Add(chains[j], LoadWide(from + r * stride + j * kWidth<double>));
        }
    }
    HWY_UNROLL(4)
    for (unsigned j = 0; j < kVectors; ++j) {
        hn::StoreU(chains[j], d, sums + j * kWidth<double>);
    }
}

template <class A>
void AddRows(double* sums, const A* from, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
    constexpr std::int64_t kVector = kWidth<double>;
    std::int64_t j = 0;
    for (; j + 4 * kVector <= columns; j += 4 * kVector) {
        AddRowVectors<4>(sums + j, from + j, stride, rows);
    }
    for (; j + kVector <= columns; j += kVector) {
        AddRowVectors<1>(sums + j, from + j, stride, rows);
    }
    for (; j < columns; ++j) {
        for (std::int64_t r = 0; r < rows; ++r) {
            sums[j] += static_cast<double>(from[r * stride + j]);
        }
    }
}

template <class A>
constexpr Products<A> MakeProducts() {
    return {.left_width = kTallest,
            .right_width = kWidest * kWidth<A>,
            .pack = Pack<A>,
            .multiply = MultiplyPanel<A>,
            .add_rows = AddRows<A>};
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
