// Products of the stages that are there to be looked at, and of single rows: as exact as can be, and plain. What is
// trained is multiplied by nn/matrix_product.hpp. An element's bits depend on its row and column alone, not on how many
// rows there are.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "qkv/runtime.hpp"

namespace qkv {

/// Σ a[i] b[i], summed in double and rounded to T once: a product of two floats is exact there, so a float result is
/// almost always the nearest one. 16 interleaved partial sums let the compiler vectorise without reordering anything.
template <class T>
[[nodiscard]] T dot(const T* a, const T* b, std::int64_t n) {
    constexpr std::int64_t kLanes = 16;
    const auto product = [a, b](std::int64_t i) { return static_cast<double>(a[i]) * static_cast<double>(b[i]); };
    double total = 0;
    std::int64_t i = 0;
    if (n >= kLanes) {
        std::array<double, kLanes> lanes{};
        for (; i + kLanes <= n; i += kLanes) {
            for (std::int64_t lane = 0; lane < kLanes; ++lane) {
                lanes[static_cast<std::size_t>(lane)] += product(i + lane);
            }
        }
        for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
            for (std::size_t lane = 0; lane < half; ++lane) {
                lanes[lane] += lanes[lane + half];
            }
        }
        total = lanes[0];
    }
    for (; i < n; ++i) {
        total += product(i);
    }
    return static_cast<T>(total);
}

/// out[m, n] = a[m, k] · b[n, k]ᵀ
template <class T>
void multiply_transposed(const T* a, const T* b, T* out, std::int64_t m, std::int64_t n, std::int64_t k,
                         const Runtime& runtime = Runtime::serial()) {
    runtime.parallel_for(m, [=](std::int64_t row) {
        for (std::int64_t column = 0; column < n; ++column) {
            out[row * n + column] = dot(a + row * k, b + column * k, k);
        }
    });
}

/// out[m, n] = a[m, k] · b[k, n]
template <class T>
void multiply(const T* a, const T* b, T* out, std::int64_t m, std::int64_t n, std::int64_t k,
              const Runtime& runtime = Runtime::serial()) {
    std::vector<T> b_transposed(static_cast<std::size_t>(n * k));  // [n, k]
    for (std::int64_t row = 0; row < k; ++row) {
        for (std::int64_t column = 0; column < n; ++column) {
            b_transposed[static_cast<std::size_t>(column * k + row)] = b[row * n + column];
        }
    }
    multiply_transposed(a, b_transposed.data(), out, m, n, k, runtime);
}

}  // namespace qkv
