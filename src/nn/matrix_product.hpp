// Products of matrices, c = a b, cut into blocks that fit caches and shared out among threads.
//
// An element's bits depend on its row of a and its column of b alone: its sum runs over chunks of kChunk terms, added
// up in their order (where the product asks for it, first within groups of kGroup terms), each a chain from 0 in the
// order of the terms (or the sum of shorter ones). So they are the same for any number of threads, any number of rows,
// and whatever stands around.
#pragma once

#include <cstdint>

#include "kernels/products.hpp"
#include "qkv/runtime.hpp"

namespace qkv::nn {

using kernels::Strided;

/// A row-major matrix of `columns` columns.
template <class T>
[[nodiscard]] Strided<T> row_major(const T* data, std::int64_t columns) noexcept {
    return {data, columns, 1};
}

/// Terms that are packed together, and of one chain of sums.
inline constexpr std::int64_t kChunk = 256;
/// Where more exact sums cost little: √16 + √(k / 16) roundings instead of √k, in the mean.
inline constexpr std::int64_t kShortChain = 16;

enum class Sums {
    long_chains,
    short_chains,
    /// In double, rounded once, and without packing, which would take longer than the product.
    in_double,
};

/// How layers with a weight of so many numbers sum. The weight decides and nothing else, so that a row has the same
/// bits in any batch.
[[nodiscard]] constexpr Sums sums_for_weight(std::int64_t numbers) noexcept {
    if (numbers > 96 * 96) {
        return Sums::long_chains;
    }
    return numbers > 64 ? Sums::short_chains : Sums::in_double;
}
/// The same for gradients, of which there are twice as many products: from the size of a small model on, as `qkv train`
/// makes it, a step waits for them.
[[nodiscard]] constexpr Sums gradient_sums_for_weight(std::int64_t numbers) noexcept {
    return numbers >= 64 * 64 ? Sums::long_chains : sums_for_weight(numbers);
}

/// Terms of a group, where sums run in groups.
inline constexpr std::int64_t kGroup = 2 * kChunk;

/// Whether a gradient of so many outputs and inputs sums the rows of a batch in groups: the sums of all groups are then
/// less to write and to read again than what they sum. Each thread takes rows that it has in its cache; where it took
/// its part of the sums over all rows, half of them came from another processor (64 × 64 over 1,024 rows with two
/// threads: 100 us, with one: 126).
[[nodiscard]] constexpr bool gradient_in_groups(std::int64_t d_out, std::int64_t d_in) noexcept {
    constexpr std::int64_t kMostNumbers = 1 << 18;  // 1 MiB of floats for each group
    const std::int64_t numbers = d_out * d_in;
    return numbers <= kMostNumbers && numbers <= kGroup / 2 * (d_out + d_in);
}

/// c [m, n] = a [m, k] · b [k, n], each whole in memory: c row-major, a and b row-major or the transposed of that.
template <class T>
struct Product {
    std::int64_t m = 0;
    std::int64_t n = 0;
    std::int64_t k = 0;
    Strided<T> a = {};
    Strided<T> b = {};
    T* c = nullptr;
    const T* bias = nullptr;  ///< [n], added to each row; nullptr: none
    bool add = false;         ///< c += a b
    Sums sums = Sums::long_chains;
    bool in_groups = false;  ///< sums of kGroup terms each, which are then added up in their order
};

template <class T>
void multiply(const Product<T>& product, const Runtime& runtime);

/// sums [columns] += the rows of from [rows, columns], row-major; summed in double in groups of kGroup rows, and
/// rounded once.
template <class T>
void add_rows(T* sums, const T* from, std::int64_t rows, std::int64_t columns, const Runtime& runtime);

}  // namespace qkv::nn
