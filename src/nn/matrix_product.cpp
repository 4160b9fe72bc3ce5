#include "nn/matrix_product.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "core/check.hpp"
#include "core/matrix_product.hpp"

namespace qkv::nn {

namespace {

/// Rows of c that one task keeps packed at a time: times kChunk floats they stay in the second-level cache.
constexpr std::int64_t kMostRows = 896;

/// Multiply-adds for which another thread is worth waking.
constexpr std::int64_t kWorthATask = 1 << 18;

constexpr std::align_val_t kCacheLine{64};

struct FreeAligned {
    void operator()(void* memory) const noexcept { ::operator delete(memory, kCacheLine); }
};

/// Room for packed numbers, not written yet.
template <class T>
std::unique_ptr<T, FreeAligned> packing_room(std::int64_t count) {
    return std::unique_ptr<T, FreeAligned>(
        static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), kCacheLine)));
}

constexpr std::int64_t ceil_divide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_divide(a, b) * b; }

/// A block of c, all of k.
///
///     left panels (rows, chunk), packed once a chunk, second-level cache
///       · right panel (chunk, right_width), packed when its turn comes, first-level cache
///         → tiles of c
template <class T>
void multiply_block(const Product<T>& p, const kernels::Products<T>& kernels, std::int64_t first_row, std::int64_t rows,
                    std::int64_t first_column, std::int64_t columns) {
    const std::int64_t deepest = std::min(p.k, kChunk);
    const std::int64_t left_size = round_up(rows, kernels.left_width) * deepest;
    const auto room = packing_room<T>(round_up(left_size, 64) + kernels.right_width * deepest);
    T* const left = room.get();
    T* const right = left + round_up(left_size, 64);
    std::int64_t done = 0;
    do {  // once even where k is 0: c = 0 + bias
        const std::int64_t depth = std::min(p.k - done, kChunk);
        for (std::int64_t row = 0; row < rows; row += kernels.left_width) {
            kernels.pack(left + row * depth, kernels.left_width, p.a.from(first_row + row, done),
                         std::min(kernels.left_width, rows - row), depth);
        }
        const Strided<T> b = p.b.from(done, first_column).transposed();
        for (std::int64_t column = 0; column < columns; column += kernels.right_width) {
            const std::int64_t width = std::min(kernels.right_width, columns - column);
            kernels.pack(right, kernels.right_width, b.from(column, 0), width, depth);
            const bool last = done + depth == p.k;
            kernels.multiply(p.c + first_row * p.n + first_column + column, p.n, left, right, rows, width, depth,
                             {.add = p.add || done > 0,
                              .bias = last && p.bias != nullptr ? p.bias + first_column + column : nullptr});
        }
        done += depth;
    } while (done < p.k);
}

/// b's columns, or a's rows, each in one piece.
template <class T>
const T* in_pieces(const Strided<T>& rows, std::int64_t count, std::int64_t k, std::vector<T>& room) {
    if (rows.column_step == 1 && rows.row_step == k) {
        return rows.data;
    }
    room.resize(static_cast<std::size_t>(count * k));
    for (std::int64_t row = 0; row < count; ++row) {
        for (std::int64_t i = 0; i < k; ++i) {
            room[static_cast<std::size_t>(row * k + i)] = rows.data[row * rows.row_step + i * rows.column_step];
        }
    }
    return room.data();
}

template <class T>
void multiply_in_double(const Product<T>& p, const Runtime& runtime) {
    std::vector<T> a_room;
    std::vector<T> b_room;
    const T* const a = in_pieces(p.a, p.m, p.k, a_room);
    const T* const b = in_pieces(p.b.transposed(), p.n, p.k, b_room);
    runtime.parallel_for(p.m, [&p, a, b](std::int64_t row) {
        for (std::int64_t column = 0; column < p.n; ++column) {
            T& c = p.c[row * p.n + column];
            const T sum = dot(a + row * p.k, b + column * p.k, p.k);
            c = p.add ? c + sum : sum;
            c = p.bias != nullptr ? c + p.bias[column] : c;
        }
    });
}

}  // namespace

template <class T>
void multiply(const Product<T>& p, const Runtime& runtime) {
    if (p.sums == Sums::in_double) {
        multiply_in_double(p, p.m * p.n * p.k < kWorthATask ? Runtime::serial() : runtime);
        return;
    }
    const kernels::Products<T>& kernels = kernels::products<T>(runtime.instruction_set());
    // Blocks of rows first, as many for each thread; where there are too few rows for that, blocks of columns.
    const std::int64_t wanted = std::clamp<std::int64_t>(p.m * p.n * p.k / kWorthATask, 1, runtime.threads());
    const std::int64_t row_panels = ceil_divide(p.m, kernels.left_width);
    const std::int64_t column_panels = ceil_divide(p.n, kernels.right_width);
    const std::int64_t least = ceil_divide(p.m, kMostRows);
    const std::int64_t row_blocks = least < wanted ? least : std::min(round_up(least, wanted), row_panels);
    const std::int64_t column_blocks = std::min(ceil_divide(wanted, std::max<std::int64_t>(row_blocks, 1)), column_panels);
    const std::int64_t block_rows = ceil_divide(row_panels, std::max<std::int64_t>(row_blocks, 1)) * kernels.left_width;
    const std::int64_t block_columns =
        ceil_divide(column_panels, std::max<std::int64_t>(column_blocks, 1)) * kernels.right_width;
    runtime.parallel_for(row_blocks * column_blocks, [&](std::int64_t task) {
        const std::int64_t row = task / column_blocks * block_rows;
        const std::int64_t column = task % column_blocks * block_columns;
        if (row < p.m && column < p.n) {
            multiply_block(p, kernels, row, std::min(block_rows, p.m - row), column,
                           std::min(block_columns, p.n - column));
        }
    });
}

template <class T>
void add_rows(T* sums, const T* from, std::int64_t rows, std::int64_t columns, const Runtime& runtime) {
    const kernels::Products<T>& kernels = kernels::products<T>(runtime.instruction_set());
    constexpr std::int64_t kStrip = 256;  // columns
    const Runtime& crew = rows * columns < kWorthATask ? Runtime::serial() : runtime;
    crew.parallel_for(ceil_divide(columns, kStrip), [&](std::int64_t strip) {
        const std::int64_t first = strip * kStrip;
        const std::int64_t count = std::min(kStrip, columns - first);
        std::array<double, kStrip> totals{};
        kernels.add_rows(totals.data(), from + first, columns, rows, count);
        for (std::int64_t j = 0; j < count; ++j) {
            sums[first + j] += static_cast<T>(totals[static_cast<std::size_t>(j)]);
        }
    });
}

template void multiply(const Product<float>&, const Runtime&);
template void multiply(const Product<double>&, const Runtime&);
template void add_rows(float*, const float*, std::int64_t, std::int64_t, const Runtime&);
template void add_rows(double*, const double*, std::int64_t, std::int64_t, const Runtime&);

}  // namespace qkv::nn
