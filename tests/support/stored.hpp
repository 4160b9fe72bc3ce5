// Tensors in guarded memory, in any storage type and layout.
#pragma once

#include <random>
#include <vector>

#include "qkv/view.hpp"
#include "support/guard.hpp"

namespace support {

using Random = std::mt19937_64;

/// Whole numbers in [low, high], and reals.
[[nodiscard]] std::int64_t pick(Random& random, std::int64_t low, std::int64_t high);
[[nodiscard]] bool chance(Random& random, double probability);
[[nodiscard]] double normal(Random& random);

enum class Layout { contiguous, tokens_first, padded, reversed };

struct Stored {
    Guarded memory;
    qkv::TensorView view;
};

/// Memory of `shape` filled with NaN patterns.
[[nodiscard]] Stored allocate(const qkv::Shape4& shape, qkv::DType dtype, Layout layout = Layout::contiguous,
                              Guarded::Side side = Guarded::Side::end);

/// Writes dense row-major values, each rounded to the type.
void write(const qkv::TensorView& view, const std::vector<double>& values);
[[nodiscard]] std::vector<double> read(const qkv::ConstTensorView& view);
void write_one(const qkv::TensorView& view, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j,
               double value);

[[nodiscard]] Layout pick_layout(Random& random);
[[nodiscard]] Guarded::Side pick_side(Random& random);

/// `count` normal numbers, rounded to what `dtype` can hold.
[[nodiscard]] std::vector<double> normals(Random& random, std::int64_t count, qkv::DType dtype, double spread = 1.0);

}  // namespace support
