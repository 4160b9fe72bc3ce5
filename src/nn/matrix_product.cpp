#include "nn/matrix_product.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>
#include <numeric>
#include <vector>

#include "core/check.hpp"
#include "nn/rows.hpp"
#include "qkv/tensor.hpp"

namespace qkv::nn {

namespace {

/// Rows of c that one task keeps packed at a time: times kChunk floats they stay in the second-level cache.
constexpr std::int64_t kMostRows = 896;

/// Multiply-adds for which another thread is worth waking, and how many of them reading and packing a number of b costs
/// as much as.
constexpr std::int64_t kWorthATask = 1 << 20;
constexpr std::int64_t kPackingCost = 16;

/// Room for packed numbers, not written yet.
template <class T>
std::vector<T, qkv::detail::ElementAllocator<T>> packing_room(std::int64_t count) {
    try {
        return std::vector<T, qkv::detail::ElementAllocator<T>>(static_cast<std::size_t>(count));
    } catch (const std::bad_alloc&) {
        fail(ErrorCode::out_of_memory, "no memory for ", count, " × ", sizeof(T), " bytes of a matrix product");
    }
}

constexpr std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_divide(a, b) * b; }

/// Whether a, as it lies, is as good as packed. Short rows one after another are: a panel of them is one piece of
/// memory. (Longer ones are not: 12 streams of a chunk each were 70 against 88 GFLOP/s.) So are columns of short rows
/// where few panels of b pass, which would not repay packing; rows of 2 KiB would fall onto one another in the
/// first-level cache.
template <class T>
bool lies_packed(const Product<T>& p, const kernels::Products<T>& kernels) {
    constexpr auto kShortRow = static_cast<std::int64_t>(1024 / sizeof(T));
    constexpr std::int64_t kFewPanels = 8;
    const bool rows = p.a.column_step == 1 && p.a.row_step == p.k && p.k <= kChunk;
    const bool columns = p.a.row_step == 1 && p.a.column_step <= kShortRow && p.n <= kFewPanels * kernels.right_width;
    return rows || columns;
}

/// A block of c, all of k.
///
///     left panels (rows, chunk), packed as many chunks at a time as fit the second-level cache
///       · right panel (chunk, right_width), packed when its turn comes, first-level cache
///         → tiles of c
///
/// With few rows all of `a` is packed at once, and b is read in place, in its own order, once.
template <class T>
void multiply_block(const Product<T>& p, const kernels::Products<T>& kernels, std::int64_t first_row, std::int64_t rows,
                    std::int64_t first_column, std::int64_t columns) {
    const std::int64_t chain = p.sums == Sums::short_chains ? kShortChain : kChunk;
    const bool in_place = lies_packed(p, kernels);
    const std::int64_t height = round_up(rows, kernels.left_width);
    const std::int64_t span = in_place ? p.k : std::min(p.k, std::max<std::int64_t>(1, kMostRows / height) * kChunk);
    const std::int64_t left_room = in_place ? 0 : round_up(height * span, 64);
    auto room = packing_room<T>(left_room + kernels.right_width * std::min(span, kChunk));
    T* const packed = room.data();
    T* const right = packed + left_room;
    const Strided<T> b = p.b.transposed();
    std::int64_t begin = 0;
    do {  // once even where k is 0: c = 0 + bias
        const std::int64_t end = std::min(p.k, begin + span);
        for (std::int64_t at = begin; at < end && !in_place; at += kChunk) {
            const std::int64_t depth = std::min(kChunk, end - at);
            for (std::int64_t row = 0; row < rows; row += kernels.left_width) {
                kernels.pack(packed + (at - begin) * height + row * depth, kernels.left_width,
                             p.a.from(first_row + row, at), std::min(kernels.left_width, rows - row), depth);
            }
        }
        for (std::int64_t column = 0; column < columns; column += kernels.right_width) {
            const std::int64_t width = std::min(kernels.right_width, columns - column);
            T* const c = p.c + first_row * p.n + first_column + column;
            std::int64_t at = begin;
            do {
                const std::int64_t depth = std::min(kChunk, end - at);
                kernels.pack(right, kernels.right_width, b.from(first_column + column, at), width, depth);
                const bool last = at + depth == p.k;
                const kernels::Panels<T> left =
                    in_place ? kernels::Panels<T>{p.a.from(first_row, at).data, kernels.left_width * p.a.row_step,
                                                  p.a.row_step, p.a.column_step}
                             : kernels::Panels<T>{packed + (at - begin) * height, kernels.left_width * depth, 1,
                                                  kernels.left_width};
                kernels.multiply(c, p.n, left, right, rows, width, depth, chain,
                                 {.add = p.add || at > 0,
                                  .bias = last && p.bias != nullptr ? p.bias + first_column + column : nullptr});
                at += depth;
            } while (at < end);
        }
        begin = end;
    } while (begin < p.k);
}

/// A product as the products of its groups of terms: the first goes to c, the others to room of their own.
template <class T>
struct Groups {
    explicit Groups(const Product<T>& p)
        : product(p),
          count(p.in_groups ? std::max<std::int64_t>(1, ceil_divide(p.k, kGroup)) : 1),
          room(packing_room<T>((count - 1) * p.m * p.n)),
          others(room.data()) {}

    [[nodiscard]] Product<T> operator[](std::int64_t group) const {
        if (count == 1) {
            return product;
        }
        Product<T> part = product;
        part.a = product.a.from(0, group * kGroup);
        part.b = product.b.from(group * kGroup, 0);
        part.k = std::min(kGroup, product.k - group * kGroup);
        if (group > 0) {
            part.c = sums(group);
            part.add = false;
            part.bias = nullptr;
        }
        return part;
    }

    /// c ← c + the sums of the second group + those of the third, and so on.
    void add_up(const kernels::Layers<T>& kernels, const Runtime& runtime) const {
        const std::int64_t numbers = count == 1 ? 0 : product.m * product.n;
        for_runs(runtime, numbers, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t group = 1; group < count; ++group) {
                kernels.add(product.c + begin, sums(group) + begin, end - begin);
            }
        });
    }

    [[nodiscard]] T* sums(std::int64_t group) const { return others + (group - 1) * product.m * product.n; }

    const Product<T>& product;
    std::int64_t count;
    std::vector<T, qkv::detail::ElementAllocator<T>> room;
    T* others;
};

struct Blocks {
    std::int64_t rows, columns;
};

/// The blocks of c that so many threads finish soonest. Whoever has rows of c packs all of b for them, and whoever has
/// columns all of a, unless that lies as if packed.
template <class T>
Blocks best_blocks(const Product<T>& p, const kernels::Products<T>& kernels, std::int64_t threads) {
    const std::int64_t packing = lies_packed(p, kernels) ? 0 : kPackingCost;
    const std::int64_t row_panels = ceil_divide(p.m, kernels.left_width);
    const std::int64_t column_panels = ceil_divide(p.n, kernels.right_width);
    Blocks best{};
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t across = 1; across <= std::min(threads, column_panels); ++across) {
        const std::int64_t down = std::max(ceil_divide(p.m, kMostRows), ceil_divide(threads, across));
        const Blocks blocks{
            ceil_divide(row_panels, std::min(round_up(down, ceil_divide(threads, across)), row_panels)) *
                kernels.left_width,
            ceil_divide(column_panels, across) * kernels.right_width};
        const std::int64_t tasks = ceil_divide(p.m, blocks.rows) * ceil_divide(p.n, blocks.columns);
        const std::int64_t rows = std::min(blocks.rows, p.m);
        const std::int64_t columns = std::min(blocks.columns, p.n);
        const std::int64_t cost =
            ceil_divide(tasks, threads) * (rows * columns + packing * rows + kPackingCost * columns);
        if (cost < least - least / 16) {  // rows are what a thread has in its cache from the layer before
            least = cost;
            best = blocks;
        }
    }
    return best;
}

template <class T>
void multiply_in_own_type(const Product<T>& p, const Runtime& runtime) {
    const kernels::Products<T>& kernels = kernels::products<T>(runtime.instruction_set());
    const std::int64_t threads =
        std::clamp<std::int64_t>((p.m + kPackingCost) * p.n * p.k / kWorthATask, 1, runtime.threads());
    const Groups<T> groups(p);
    const Blocks blocks = best_blocks(groups[0], kernels, threads / std::gcd(threads, groups.count));
    const std::int64_t across = ceil_divide(p.n, blocks.columns);
    const std::int64_t of_group = ceil_divide(p.m, blocks.rows) * across;
    const Runtime& crew = threads == 1 ? Runtime::serial() : runtime;
    crew.parallel_for(groups.count * of_group, [&](std::int64_t task) {
        const std::int64_t row = task % of_group / across * blocks.rows;
        const std::int64_t column = task % of_group % across * blocks.columns;
        multiply_block(groups[task / of_group], kernels, row, std::min(blocks.rows, p.m - row), column,
                       std::min(blocks.columns, p.n - column));
    });
    groups.add_up(kernels::layers<T>(runtime.instruction_set()), crew);
}

template <class T>
void multiply_plainly(const Product<T>& p) {
    for (std::int64_t row = 0; row < p.m; ++row) {
        for (std::int64_t column = 0; column < p.n; ++column) {
            const T* a = p.a.from(row, 0).data;
            const T* b = p.b.from(0, column).data;
            double sum = 0;
            for (std::int64_t i = 0; i < p.k; ++i) {
                sum += static_cast<double>(a[i * p.a.column_step]) * static_cast<double>(b[i * p.b.row_step]);
            }
            T& c = p.c[row * p.n + column];
            c = p.add ? c + static_cast<T>(sum) : static_cast<T>(sum);
            c = p.bias != nullptr ? c + p.bias[column] : c;
        }
    }
}

}  // namespace

template <class T>
void multiply(const Product<T>& p, const Runtime& runtime) {
    if (p.m == 0 || p.n == 0) {
        return;
    }
    if (p.sums == Sums::in_double) {
        multiply_plainly(p);
        return;
    }
    multiply_in_own_type(p, runtime);
}

template <class T>
void add_rows(T* sums, const T* from, std::int64_t rows, std::int64_t columns, const Runtime& runtime) {
    const kernels::Products<T>& kernels = kernels::products<T>(runtime.instruction_set());
    constexpr std::int64_t kStrip = 32;  // columns: two lines of a row, and four chains of sums
    const std::int64_t strips = ceil_divide(columns, kStrip);
    const std::int64_t groups = ceil_divide(rows, kGroup);
    std::vector<double> totals(static_cast<std::size_t>(groups * columns));
    const Runtime& crew = rows * columns * kPackingCost < kWorthATask ? Runtime::serial() : runtime;
    crew.parallel_for(groups * strips, [&](std::int64_t task) {
        const std::int64_t row = task / strips * kGroup;
        const std::int64_t column = task % strips * kStrip;
        kernels.add_rows(totals.data() + task / strips * columns + column, from + row * columns + column, columns,
                         std::min(kGroup, rows - row), std::min(kStrip, columns - column));
    });
    for (std::int64_t column = 0; column < columns; ++column) {
        double sum = 0;
        for (std::int64_t group = 0; group < groups; ++group) {
            sum += totals[static_cast<std::size_t>(group * columns + column)];
        }
        sums[column] += static_cast<T>(sum);
    }
}

template void multiply(const Product<float>&, const Runtime&);
template void multiply(const Product<double>&, const Runtime&);
template void add_rows(float*, const float*, std::int64_t, std::int64_t, const Runtime&);
template void add_rows(double*, const double*, std::int64_t, std::int64_t, const Runtime&);

}  // namespace qkv::nn
