// What the tile loops share: reading rows, and products that leave out what is masked.
//
// A is the type of computation: float, or double for checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/key_value.hpp"
#include "attention/workspace.hpp"
#include "core/convert.hpp"

namespace qkv::detail {

using kernels::Kernels;
using kernels::Left;
using kernels::RowsOut;

template <class A>
inline constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();

/// The kernels for a problem's types.
template <class A>
[[nodiscard]] const Kernels<A>& kernels_for(const Problem& problem, const Runtime& runtime) {
    const bool mixed = problem.blocks.data != nullptr && problem.blocks.dtype != problem.q.dtype;
    return kernels::table<A>(runtime.instruction_set(), mixed ? DType::f32 : problem.q.dtype);
}

/// `rows` tokens of one head, from token `token` on.
[[nodiscard]] inline Rows rows_of(const ConstTensorView& view, std::int64_t batch, std::int64_t head,
                                  std::int64_t token, std::int64_t rows) {
    return {view.at(batch, head, token, 0), view.dtype, view.strides[2], rows};
}

/// The same, to be written.
[[nodiscard]] inline RowsOut rows_of(const TensorView& view, std::int64_t batch, std::int64_t head, std::int64_t token,
                                     std::int64_t rows) {
    return {view.at(batch, head, token, 0), view.dtype, view.strides[2], rows};
}

/// Asks for rows that are wanted soon: a few queries wait for memory more than for anything else.
inline void fetch(const Rows& rows, std::int64_t width) {
    constexpr std::int64_t kLine = 64;
    __asm__ volatile("");  // GCC takes a function that only prefetches for one without effect, and leaves it out
    const std::int64_t bytes = width * size_of(rows.dtype);
    for (std::int64_t r = 0; r < rows.rows; ++r) {
        const std::byte* row = rows.data + r * rows.stride * size_of(rows.dtype);
        for (std::int64_t at = 0; at < bytes; at += kLine) {
            __builtin_prefetch(row + at, 0, 2);
        }
    }
}

/// Visits the runs of rows in which tokens [token, token + rows) of one key/value head lie; `find` is key_rows or
/// value_rows.
template <class Find, class Visit>
void for_each_run(const Find& find, const Problem& problem, const Sequence& sequence, std::int64_t kv_head,
                  std::int64_t token, std::int64_t rows, const Visit& visit) {
    while (rows > 0) {
        const Rows found = find(problem, sequence, kv_head, token, rows);
        visit(found);
        token += found.rows;
        rows -= found.rows;
    }
}

/// to (rows, padded width) ← tokens [token, token + rows) of one key/value head; `find` is key_rows or value_rows.
/// Whether all are finite.
template <class A, class Find>
bool load_tokens(const Kernels<A>& kernels, A* to, const Find& find, const Problem& problem, const Sequence& sequence,
                 std::int64_t kv_head, std::int64_t token, std::int64_t rows, std::int64_t width) {
    bool finite = true;
    for_each_run(find, problem, sequence, kv_head, token, rows, [&](const Rows& found) {
        finite = kernels.load(to, kernels::padded(width), found, width, A(1)) && finite;
        to += found.rows * kernels::padded(width);
    });
    return finite;
}
template <class A>
bool load_keys(const Kernels<A>& kernels, A* to, const Problem& problem, const Sequence& sequence, std::int64_t kv_head,
               std::int64_t token, std::int64_t rows) {
    return load_tokens(kernels, to, key_rows, problem, sequence, kv_head, token, rows, problem.head_dim);
}
template <class A>
bool load_values(const Kernels<A>& kernels, A* to, const Problem& problem, const Sequence& sequence,
                 std::int64_t kv_head, std::int64_t token, std::int64_t rows) {
    return load_tokens(kernels, to, value_rows, problem, sequence, kv_head, token, rows, problem.value_dim);
}

/// cleared (inner, width) ← b, with 0 in the rows whose score is −∞; scores are `step` apart.
template <class A>
void clear_masked_rows(A* cleared, const A* b, std::int64_t inner, std::int64_t width, const A* scores,
                       std::int64_t step) {
    for (std::int64_t i = 0; i < inner; ++i) {
        const bool masked = scores[i * step] == kMinusInfinity<A>;
        std::transform(b + i * width, b + (i + 1) * width, cleared + i * width,
                       [masked](A x) { return masked ? A(0) : x; });
    }
}

}  // namespace qkv::detail
