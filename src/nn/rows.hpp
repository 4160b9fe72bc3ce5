// Loops over rows of numbers outside attention: the arithmetic of GELU, layer normalisation and cross-entropy, and how
// rows are shared among threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "qkv/nn/feed_forward.hpp"
#include "qkv/runtime.hpp"
#include "qkv/tensor.hpp"

namespace qkv::nn {

/// How many rows of `width` elements make a task: the same for any number of threads.
[[nodiscard]] inline std::int64_t rows_per_task(std::int64_t width) {
    constexpr std::int64_t kElements = 16384;
    return std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, width));
}

/// body(begin, end) over runs of [0, rows), on the runtime's threads.
template <class Body>
void for_runs(const Runtime& runtime, std::int64_t rows, std::int64_t width, const Body& body) {
    const std::int64_t run = rows_per_task(width);
    runtime.parallel_for((rows + run - 1) / run,
                         [&](std::int64_t task) { body(task * run, std::min(rows, (task + 1) * run)); });
}

/// a += b, elementwise.
template <class T>
void add_to(BasicTensor<T>& a, const BasicTensor<T>& b, const Runtime& runtime) {
    for_runs(runtime, a.numel(), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            a.data()[i] += b.data()[i];
        }
    });
}

/// GELU of x, and its slope there.
template <class T>
struct GeluPoint {
    T value, slope;
};

template <class T>
[[nodiscard]] GeluPoint<T> gelu_at(T x, Gelu form) {
    const T half_x = x / 2;
    if (form == Gelu::erf) {
        const T twice_phi = 1 + std::erf(x * static_cast<T>(1 / std::numbers::sqrt2));  // 2Φ(x)
        const T density = std::exp(-half_x * x) * static_cast<T>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
        return {half_x * twice_phi, twice_phi / 2 + x * density};
    }
    const T root = static_cast<T>(std::numbers::sqrt2 * std::numbers::inv_sqrtpi);  // √(2/π)
    const T cubic = static_cast<T>(0.044715);
    const T t = std::tanh(root * (x + cubic * x * x * x));
    return {half_x * (1 + t), (1 + t) / 2 + half_x * (1 - t * t) * root * (1 + 3 * cubic * x * x)};
}

/// What makes a row's mean 0 and its variance 1: (x − mean) · inverse.
struct RowMoments {
    double mean, inverse;  // 1 / √(variance + eps)
};

template <class T>
[[nodiscard]] RowMoments row_moments(const T* x, std::int64_t width, double eps) {
    double sum = 0;
    for (std::int64_t i = 0; i < width; ++i) {
        sum += static_cast<double>(x[i]);
    }
    const double mean = sum / static_cast<double>(width);
    double squares = 0;
    for (std::int64_t i = 0; i < width; ++i) {
        const double distance = static_cast<double>(x[i]) - mean;
        squares += distance * distance;
    }
    return {mean, 1.0 / std::sqrt(squares / static_cast<double>(width) + eps)};
}

/// y = (x − mean) / √(variance + eps) · scale + shift
template <class T>
void layer_norm_row(const T* x, const T* scale, const T* shift, T* y, std::int64_t width, double eps) {
    const RowMoments moments = row_moments(x, width, eps);
    for (std::int64_t i = 0; i < width; ++i) {
        const double normal = (static_cast<double>(x[i]) - moments.mean) * moments.inverse;
        y[i] = static_cast<T>(normal * static_cast<double>(scale[i]) + static_cast<double>(shift[i]));
    }
}

/// With n the normalised row and g = d_y · scale:
///
///     d_x = (g − mean(g) − n · mean(g · n)) / √(variance + eps)        d_scale += d_y · n        d_shift += d_y
template <class T>
void layer_norm_backward_row(const T* x, const T* scale, const T* d_y, T* d_x, double* d_scale, double* d_shift,
                             std::int64_t width, double eps) {
    const RowMoments moments = row_moments(x, width, eps);
    const auto normal = [&](std::int64_t i) { return (static_cast<double>(x[i]) - moments.mean) * moments.inverse; };
    double sum = 0;
    double along = 0;
    for (std::int64_t i = 0; i < width; ++i) {
        const double slope = static_cast<double>(d_y[i]);
        const double g = slope * static_cast<double>(scale[i]);
        sum += g;
        along += g * normal(i);
        d_scale[i] += slope * normal(i);
        d_shift[i] += slope;
    }
    const double count = static_cast<double>(width);
    for (std::int64_t i = 0; i < width; ++i) {
        const double g = static_cast<double>(d_y[i]) * static_cast<double>(scale[i]);
        d_x[i] = static_cast<T>((g - sum / count - normal(i) * (along / count)) * moments.inverse);
    }
}

/// A row of logits on its way to a softmax: exp(logit − maximum) / sum.
struct SoftmaxRow {
    double maximum, sum;
};

template <class T>
[[nodiscard]] SoftmaxRow softmax_moments(const T* logits, std::int64_t classes) {
    T maximum = -std::numeric_limits<T>::infinity();
    for (std::int64_t i = 0; i < classes; ++i) {
        maximum = logits[i] > maximum || std::isnan(logits[i]) ? logits[i] : maximum;  // a NaN stays
    }
    double sum = 0;
    for (std::int64_t i = 0; i < classes; ++i) {
        sum += static_cast<double>(std::exp(logits[i] - maximum));
    }
    return {static_cast<double>(maximum), sum};
}

/// −ln softmax(logits)[target]
template <class T>
[[nodiscard]] double cross_entropy_row(const T* logits, std::int64_t target, const SoftmaxRow& row) {
    return std::log(row.sum) - (static_cast<double>(logits[target]) - row.maximum);
}

/// logits ← (softmax(logits) − one-hot target) · factor
template <class T>
void cross_entropy_backward_row(T* logits, std::int64_t target, std::int64_t classes, const SoftmaxRow& row,
                                double factor) {
    for (std::int64_t i = 0; i < classes; ++i) {
        const double weight = static_cast<double>(std::exp(logits[i] - static_cast<T>(row.maximum))) / row.sum;
        logits[i] = static_cast<T>((weight - (i == target ? 1.0 : 0.0)) * factor);
    }
}

}  // namespace qkv::nn
