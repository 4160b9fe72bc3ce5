// What the tile loops share: reading rows, and products that leave out what is masked.
//
// A is the type of computation: float, or double for checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/problem.hpp"
#include "core/convert.hpp"

namespace qkv::detail {

using kernels::Kernels;
using kernels::Left;
using kernels::Rows;

template <class A>
inline constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();

/// `count` tokens of one head, from token `token` on.
[[nodiscard]] inline Rows rows_of(const ConstTensorView& view, std::int64_t batch, std::int64_t head,
                                  std::int64_t token, std::int64_t count) {
    return {view.at(batch, head, token, 0), view.dtype, view.strides[2], count};
}

/// multiply_add that leaves out what is masked: entries of `left` whose score (walked as `left` is) is −∞. Their factor
/// is 0 and the same sums result, unless b holds a NaN or an infinity there: 0 × NaN is NaN. Every row of c gets a copy
/// of b, in `cleared`, in which the rows that it may not see are 0.
template <class A>
void multiply_add_unmasked(const Kernels<A>& kernels, A* c, const Left<A>& left, const A* scores, const A* b,
                           std::int64_t rows, std::int64_t inner, std::int64_t width, A* cleared) {
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < inner; ++i) {
            const bool masked = scores[r * left.row_step + i * left.inner_step] == kMinusInfinity<A>;
            std::transform(b + i * width, b + (i + 1) * width, cleared + i * width,
                           [masked](A x) { return masked ? A(0) : x; });
        }
        kernels.multiply_add(c + r * width, width, {left.data + r * left.row_step, left.row_step, left.inner_step},
                             cleared, width, 1, inner, width);
    }
}

}  // namespace qkv::detail
