// Products of large matrices: what of them depends on the instruction set. Blocking and threads are nn's
// (nn/matrix_product.hpp).
//
// A tile of c, kTallest rows by a panel's columns, stays in registers while the chunk of `inner` passes by. Operands
// come packed, so that this walk is along memory whatever the matrices' own layouts are, but for a left one whose rows
// are so short that they do as they lie.
#pragma once

#include <cstdint>

#include "qkv/instruction_set.hpp"

namespace qkv::kernels {

/// How a matrix lies in memory: element (row, column) at data[row · row_step + column · column_step].
template <class A>
struct Strided {
    const A* data = nullptr;
    std::int64_t row_step = 0;
    std::int64_t column_step = 0;

    [[nodiscard]] Strided transposed() const noexcept { return {data, column_step, row_step}; }
    [[nodiscard]] Strided from(std::int64_t row, std::int64_t column) const noexcept {
        return {data + row * row_step + column * column_step, row_step, column_step};
    }
};

/// Rows of a left operand, in panels: term i of row r of panel p at data[p · panel_step + r · row_step + i ·
/// term_step].
template <class A>
struct Panels {
    const A* data = nullptr;
    std::int64_t panel_step = 0;
    std::int64_t row_step = 0;
    std::int64_t term_step = 0;
};

/// What a finished sum meets on its way into c.
template <class A>
struct Finish {
    bool add = false;         ///< c + sum, else sum alone
    const A* bias = nullptr;  ///< one for each column, added last; nullptr: none
};

template <class A>
struct Products {
    /// Rows of `left` and columns of `right` that make one panel.
    std::int64_t left_width;
    std::int64_t right_width;

    /// to (columns, width) ← fromᵀ: `rows` (at most `width`) numbers of each column side by side, the rest of a line 0.
    /// One of `from`'s steps is 1. `to` is aligned to a cache line.
    void (*pack)(A* to, std::int64_t width, const Strided<A>& from, std::int64_t rows, std::int64_t columns);
    /// c (rows, c_stride) ← finish(left · right) in `columns` (at most right_width) columns: panels of `left`, of which
    /// one of the two steps is 1, and one panel of `right`, (inner, right_width), packed. An element's sum runs in the
    /// order of `inner`: in chains of `chain` terms, each begun at 0, that are added up in their order.
    void (*multiply)(A* c, std::int64_t c_stride, const Panels<A>& left, const A* right, std::int64_t rows,
                     std::int64_t columns, std::int64_t inner, std::int64_t chain, const Finish<A>& finish);
    /// sums (columns) += the `rows` rows of from (rows, stride), added up from the first to the last.
    void (*add_rows)(double* sums, const A* from, std::int64_t stride, std::int64_t rows, std::int64_t columns);
};

template <class A>
[[nodiscard]] const Products<A>& products(InstructionSet set) noexcept;

}  // namespace qkv::kernels
