// What the tile loops do with blocks of numbers. Everything here works row by row in a fixed order, so a row's bits do
// not depend on the rows around it. A kernel for an instruction set replaces these and nothing above.
//
// A is the type of computation: float, or double for checks.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "attention/convert.hpp"
#include "attention/key_value.hpp"

namespace qkv::detail {

template <class A>
inline constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();

/// to (rows, width) ← `rows` tokens of one head, from token `token` on.
template <class A>
void load_rows(A* to, const ConstTensorView& view, std::int64_t batch, std::int64_t head, std::int64_t token,
               std::int64_t rows) {
    const std::int64_t width = view.size(3);
    for (std::int64_t r = 0; r < rows; ++r) {
        load(to + r * width, view.at(batch, head, token + r, 0), view.dtype, 1, width);
    }
}

/// to (rows, width) ← tokens [token, token + rows) of one key/value head; `find` is key_rows or value_rows.
template <class A, class Find>
void load_tokens(A* to, const Find& find, const Problem& problem, const Sequence& sequence, std::int64_t kv_head,
                 std::int64_t token, std::int64_t rows, std::int64_t width) {
    while (rows > 0) {
        const Rows found = find(problem, sequence, kv_head, token, rows);
        const std::int64_t step = found.stride * size_of(found.dtype);
        for (std::int64_t r = 0; r < found.rows; ++r) {
            load(to + r * width, found.data + r * step, found.dtype, 1, width);
        }
        to += found.rows * width;
        token += found.rows;
        rows -= found.rows;
    }
}
template <class A>
void load_keys(A* to, const Problem& problem, const Sequence& sequence, std::int64_t kv_head, std::int64_t token,
               std::int64_t rows) {
    load_tokens(to, key_rows, problem, sequence, kv_head, token, rows, problem.head_dim);
}
template <class A>
void load_values(A* to, const Problem& problem, const Sequence& sequence, std::int64_t kv_head, std::int64_t token,
                 std::int64_t rows) {
    load_tokens(to, value_rows, problem, sequence, kv_head, token, rows, problem.value_dim);
}

/// transposed (width, kKeyTile) ← rows (rows, width), columns past `rows` 0.
template <class A>
void transpose(A* transposed, const A* rows_in, std::int64_t rows, std::int64_t width) {
    for (std::int64_t d = 0; d < width; ++d) {
        A* to = transposed + d * kKeyTile;
        for (std::int64_t r = 0; r < rows; ++r) {
            to[r] = rows_in[r * width + d];
        }
        for (std::int64_t r = rows; r < kKeyTile; ++r) {
            to[r] = A(0);
        }
    }
}

/// Whether all values are finite: then 0 × value is 0 and masked entries need no care.
template <class A>
[[nodiscard]] bool all_finite(const A* values, std::int64_t count) {
    int bad = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        bad |= std::fabs(values[i]) <= std::numeric_limits<A>::max() ? 0 : 1;
    }
    return bad == 0;
}

/// How a left matrix is walked: element (row, inner) at data[row · row_step + inner · inner_step].
template <class A>
struct Left {
    const A* data;
    std::int64_t row_step;
    std::int64_t inner_step;
};

/// c (rows, width) += left (rows, inner) · b (inner, width). Every element of c is a chain of sums in the order of
/// `inner`, starting from what c holds.
template <class A>
void multiply_add(A* c, const Left<A>& left, const A* b, std::int64_t rows, std::int64_t inner, std::int64_t width) {
    for (std::int64_t r = 0; r < rows; ++r) {
        A* __restrict__ sum = c + r * width;
        const A* a = left.data + r * left.row_step;
        std::int64_t i = 0;
        // Four products per visit to `sum` spare three quarters of its loads and stores; the order is the same.
        for (; i + 4 <= inner; i += 4) {
            const A a0 = a[i * left.inner_step];
            const A a1 = a[(i + 1) * left.inner_step];
            const A a2 = a[(i + 2) * left.inner_step];
            const A a3 = a[(i + 3) * left.inner_step];
            const A* b0 = b + i * width;
            const A* b1 = b0 + width;
            const A* b2 = b1 + width;
            const A* b3 = b2 + width;
            for (std::int64_t j = 0; j < width; ++j) {
                sum[j] = (((sum[j] + a0 * b0[j]) + a1 * b1[j]) + a2 * b2[j]) + a3 * b3[j];
            }
        }
        for (; i < inner; ++i) {
            const A a0 = a[i * left.inner_step];
            const A* b0 = b + i * width;
            for (std::int64_t j = 0; j < width; ++j) {
                sum[j] += a0 * b0[j];
            }
        }
    }
}

/// multiply_add that leaves out what is masked: entries of `left` whose score (walked as `left` is) is −∞. Their factor
/// is 0 and the same sums result, unless b holds a NaN or an infinity there: 0 × NaN is NaN.
template <class A>
void multiply_add_unmasked(A* c, const Left<A>& left, const A* scores, const A* b, std::int64_t rows,
                           std::int64_t inner, std::int64_t width) {
    for (std::int64_t r = 0; r < rows; ++r) {
        A* __restrict__ sum = c + r * width;
        for (std::int64_t i = 0; i < inner; ++i) {
            const std::int64_t at = r * left.row_step + i * left.inner_step;
            if (scores[at] == kMinusInfinity<A>) {
                continue;
            }
            const A a0 = left.data[at];
            const A* b0 = b + i * width;
            for (std::int64_t j = 0; j < width; ++j) {
                sum[j] += a0 * b0[j];
            }
        }
    }
}

/// scores (rows, kKeyTile) ← a (rows, inner) · b_transposed (inner, kKeyTile).
template <class A>
void multiply_tile(A* scores, const A* a, const A* b_transposed, std::int64_t rows, std::int64_t inner) {
    for (std::int64_t i = 0; i < rows * kKeyTile; ++i) {
        scores[i] = A(0);
    }
    multiply_add(scores, Left<A>{a, inner, 1}, b_transposed, rows, inner, kKeyTile);
}

/// Sum of kKeyTile values: eight running sums, then a tree.
template <class A>
[[nodiscard]] A tile_sum(const A* values) {
    A lane[8] = {};
    for (std::int64_t c = 0; c < kKeyTile; c += 8) {
        for (std::int64_t l = 0; l < 8; ++l) {
            lane[l] += values[c + l];
        }
    }
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

}  // namespace qkv::detail
