// Products of blocks. A block of c stays in registers while a row of b and a number of each row of `left` at a time
// pass by:
//
//                        b (inner, width)   ┌──────────────┐
//                                       i → │ ░░░░ ░░░░ …  │   kColumns vectors, loaded once per i
//                                           └──────────────┘
//     left (rows, inner) ┌───────┐          ┌──────────────┐
//               kRows →  │   a   │          │ c c c c      │   kRows × kColumns accumulators
//                        └───────┘          └──────────────┘
//                            ↑ i, one number repeated over a vector
//
// 6 × 4 vectors of 32 registers: 24 multiply-adds for 4 + 6 loads, so the two multiply-add ports are the bound. With 16
// registers, 6 × 2.
//
// What b is read again and again lies in panels as wide as the block, one after another. A panel of 64 rows that are
// 512 bytes apart would be 64 lines for 8 of the 64 sets of a first-level cache: all that 8 ways hold.
#pragma once

#include <bit>

#include "kernels/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

inline constexpr unsigned kBlockRows = 6;
/// Of a single column: as many sums as two ports need to be kept busy, each waiting for the one before.
inline constexpr unsigned kNarrowRows = 12;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr unsigned kBlockColumns = 4;
#else
inline constexpr unsigned kBlockColumns = 2;
#endif

/// Width of a packed panel of b.
template <class A>
inline constexpr std::int64_t kPanel = kBlockColumns * kWidth<A>;

/// How b is walked, of numbers as they are stored: element (inner, column) at data[inner · inner_step + column], and
/// the panels `panel_step` apart.
template <class T>
struct Right {
    const T* data;
    std::int64_t inner_step;
    std::int64_t panel_step;
};

/// Elements L of the left operand and what they meet: numbers here, pairs of them in pairs-inl.hpp.
template <class L>
struct Elements {
    /// Rows of b that one element meets.
    template <class T>
    static constexpr std::int64_t kRowsMet = 1;
    static HWY_INLINE Vec<L> Repeated(const L* left) { return hn::Set(Tag<L>(), *left); }
    /// A vector of what it meets, from `right` on in the first of these rows.
    template <class T>
    static HWY_INLINE Vec<L> Met(const T* right, std::int64_t /*stride*/) {
        return LoadVector<L>(right);
    }
    static HWY_INLINE Vec<L> AddProduct(Vec<L> sum, Vec<L> left, Vec<L> right) { return hn::MulAdd(left, right, sum); }
};

/// What the compiler may no longer take for known.
HWY_INLINE std::int64_t Forgotten(std::int64_t value) {
    __asm__ volatile("" : "+r"(value));
    return value;
}

/// sums += left · b, for kRows rows and kColumns vectors. kFar: more rows, a step apart, than there are registers for
/// their addresses, so these are counted on from row to row; kept, they would take accumulators' places. `asked` takes
/// a step with each of `inner`.
template <class A, unsigned kRows, unsigned kColumns, bool kFar = false, class L, class T, class Asked = NothingAsked>
HWY_INLINE void MultiplyInto(Vec<A> (&sums)[kRows][kColumns], const Left<L>& left, const T* HWY_RESTRICT b,
                             std::int64_t b_stride, std::int64_t inner, Asked asked = {}) {
    const L* HWY_RESTRICT a = left.data;
    for (std::int64_t i = 0; i < inner; ++i) {
        const std::int64_t row_step = kFar ? Forgotten(left.row_step) : left.row_step;
        const L* HWY_RESTRICT third = a;
        Vec<A> row[kColumns];
        HWY_UNROLL(8)
        for (unsigned j = 0; j < kColumns; ++j) {
            asked.step();
            row[j] = Elements<L>::Met(b + j * kWidth<A>, b_stride);
        }
        HWY_UNROLL(16)
        for (unsigned r = 0; r < kRows; ++r) {
            if (kFar && r > 0 && r % 3 == 0) {
                third += 3 * row_step;
            }
            const Vec<A> factor = Elements<L>::Repeated(kFar ? third + r % 3 * row_step : a + r * row_step);
            HWY_UNROLL(8)
            for (unsigned j = 0; j < kColumns; ++j) {
                sums[r][j] = Elements<L>::AddProduct(sums[r][j], factor, row[j]);
            }
        }
        a += left.inner_step;
        b += Elements<L>::template kRowsMet<T> * b_stride;
    }
}

/// One block of c, kRows rows and kColumns vectors wide.
template <class A, bool kAdd, unsigned kRows, unsigned kColumns, class L, class T, class Asked = NothingAsked>
void MultiplyBlock(A* HWY_RESTRICT c, std::int64_t c_stride, const Left<L>& left, const Right<T>& b, std::int64_t inner,
                   Asked asked = {}) {
    const Tag<A> d;
    Vec<A> sums[kRows][kColumns];
    HWY_UNROLL(16)
    for (unsigned r = 0; r < kRows; ++r) {
        HWY_UNROLL(8)
        for (unsigned j = 0; j < kColumns; ++j) {
            sums[r][j] = kAdd ? hn::Load(d, c + r * c_stride + j * kWidth<A>) : hn::Zero(d);
        }
    }
    MultiplyInto<A, kRows, kColumns, (kRows > kBlockRows)>(sums, left, b.data, b.inner_step, inner, asked);
    HWY_UNROLL(16)
    for (unsigned r = 0; r < kRows; ++r) {
        HWY_UNROLL(8)
        for (unsigned j = 0; j < kColumns; ++j) {
            hn::Store(sums[r][j], d, c + r * c_stride + j * kWidth<A>);
        }
    }
}

/// All rows of kColumns vectors; the last rows in a block of their own height.
template <class A, bool kAdd, unsigned kColumns, unsigned kRows = kColumns == 1 ? kNarrowRows : kBlockRows, class L>
void MultiplyRows(A* c, std::int64_t c_stride, Left<L> left, const Right<L>& b, std::int64_t rows, std::int64_t inner) {
    for (; rows >= kRows; rows -= kRows) {
        MultiplyBlock<A, kAdd, kRows, kColumns>(c, c_stride, left, b, inner);
        c += kRows * c_stride;
        left.data += kRows * left.row_step;
    }
    if constexpr (kRows > 1) {
        if (rows > 0) {
            MultiplyRows<A, kAdd, kColumns, (kRows > kBlockRows ? kBlockRows : kRows - 1)>(c, c_stride, left, b, rows,
                                                                                           inner);
        }
    }
}

template <class A, bool kAdd, unsigned kColumns = kBlockColumns, class L>
void MultiplyAll(A* c, std::int64_t c_stride, const Left<L>& left, Right<L> b, std::int64_t rows, std::int64_t inner,
                 std::int64_t width) {
    constexpr std::int64_t kStep = kColumns * kWidth<A>;
    for (; width >= kStep; width -= kStep) {
        MultiplyRows<A, kAdd, kColumns>(c, c_stride, left, b, rows, inner);
        c += kStep;
        b.data += kColumns == kBlockColumns ? b.panel_step : kStep;
    }
    if constexpr (kColumns > 1) {
        if (width > 0) {
            MultiplyAll<A, kAdd, kColumns - 1>(c, c_stride, left, b, rows, inner, width);
        }
    }
}

/// c (rows, width) += left · b
template <class A, class L>
void MultiplyAdd(A* c, std::int64_t c_stride, const Left<L>& left, const Right<L>& b, std::int64_t rows,
                 std::int64_t inner, std::int64_t width) {
    MultiplyAll<A, true>(c, c_stride, left, b, rows, inner, width);
}

// Products during which the next keys and values are asked for.

template <unsigned kMost>
[[nodiscard]] constexpr std::int64_t blocks_of(std::int64_t rows) {
    return (rows + kMost - 1) / kMost;
}
/// Blocks of at most kMost rows that are as high as each other.
template <unsigned kMost>
[[nodiscard]] constexpr std::int64_t height_of(std::int64_t rows) {
    return (rows + blocks_of<kMost>(rows) - 1) / blocks_of<kMost>(rows);
}

/// Of what is packed a fourth as many lines are asked for: others were while it was packed.
inline constexpr std::int64_t kPassesOfPacked = 4;

/// kRows rows of c, as many vectors wide as there are sums for, kMost at most. `passes`: how often the
/// call reads b; as many lines are asked for as b has.
template <class A, bool kAdd, unsigned kMost, unsigned kRows, class L, class T,
          unsigned kColumns = std::min(kMost, std::bit_floor(kBlockRows* kBlockColumns / kRows))>
void MultiplyInOnePass(A* c, std::int64_t c_stride, const Left<L>& left, Right<T> b, std::int64_t inner,
                       std::int64_t width, std::int64_t passes, Ahead* ahead) {
    constexpr std::int64_t kStep = kColumns * kWidth<A>;
    constexpr std::int64_t kRead = kStep * Elements<L>::template kRowsMet<T> * static_cast<std::int64_t>(sizeof(T));
    for (; width >= kStep; width -= kStep) {
        const AskedAlong asked(ahead, kRead * inner / Ahead::kLine / passes, inner * kColumns);
        MultiplyBlock<A, kAdd, kRows, kColumns>(c, c_stride, left, b, inner, asked);
        c += kStep;
        b.data += kColumns < kBlockColumns ? kStep : kColumns / kBlockColumns * b.panel_step;
    }
    if constexpr (kColumns > 1) {
        if (width > 0) {
            MultiplyInOnePass<A, kAdd, kColumns / 2, kRows>(c, c_stride, left, b, inner, width, passes, ahead);
        }
    }
}

/// All rows, in blocks of one height where kBlockRows are not enough. kMost: vectors that b has side by side.
template <class A, bool kAdd, unsigned kMost, class L, class T, unsigned kRows = kBlockRows>
void MultiplyAndAsk(A* c, std::int64_t c_stride, Left<L> left, const Right<T>& b, std::int64_t rows, std::int64_t inner,
                    std::int64_t width, std::int64_t passes, Ahead* ahead) {
    const std::int64_t height = height_of<kBlockRows>(rows);
    if (height == kRows) {
        for (; rows >= kRows; rows -= kRows) {
            MultiplyInOnePass<A, kAdd, kMost, kRows>(c, c_stride, left, b, inner, width, passes, ahead);
            c += kRows * c_stride;
            left.data += kRows * left.row_step;
        }
    }
    if constexpr (kRows > 1) {
        if (rows > 0) {
            MultiplyAndAsk<A, kAdd, kMost, L, T, kRows - 1>(c, c_stride, left, b, rows, inner, width, passes, ahead);
        }
    }
}

/// c (rows, width) ← left · b. Of a single vector blocks are higher than those that ask.
template <class A, class L>
void Multiply(A* c, std::int64_t c_stride, const Left<L>& left, const Right<L>& b, std::int64_t rows,
              std::int64_t inner, std::int64_t width, Ahead* ahead) {
    if (ahead != nullptr && !ahead->empty() && width > kWidth<A>) {
        MultiplyAndAsk<A, false, kBlockColumns>(c, c_stride, left, b, rows, inner, width, kPassesOfPacked, ahead);
    } else {
        MultiplyAll<A, false>(c, c_stride, left, b, rows, inner, width);
    }
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
