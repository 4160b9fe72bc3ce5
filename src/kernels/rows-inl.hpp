// Rows of stored numbers in and out, and their transpose.
#pragma once

#include <algorithm>

#include "core/convert.hpp"
#include "kernels/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

// Half precision is read and written by the machine's own conversions where they round to nearest.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON
inline constexpr bool kConvertsHalf = true;
#else
inline constexpr bool kConvertsHalf = false;
#endif

/// Whether a vector of T is read and written as one; the rest goes element by element.
template <class A, class T>
inline constexpr bool kVectorised =
    std::is_same_v<A, T> || (std::is_same_v<A, float> && kWidth<A> > 1 &&
                             (std::is_same_v<T, BFloat16> || (std::is_same_v<T, Float16> && kConvertsHalf)));

template <class A, class T>
HWY_INLINE Vec<A> LoadVector(const T* from) {
    const Tag<A> d;
    if constexpr (std::is_same_v<A, T>) {
        return hn::LoadU(d, from);
    } else {
        const hn::Rebind<std::uint16_t, Tag<A>> d16;
        const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from));
        if constexpr (std::is_same_v<T, BFloat16>) {
            const hn::RebindToUnsigned<Tag<A>> du;
            return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
        } else {
            const hn::Rebind<hwy::float16_t, Tag<A>> half;
            return hn::PromoteTo(d, hn::BitCast(half, bits));
        }
    }
}

/// A vector of numbers that the instruction set may have to convert one by one.
template <class A, class T>
HWY_INLINE Vec<A> LoadNumbers(const T* from) {
    if constexpr (kVectorised<A, T>) {
        return LoadVector<A>(from);
    } else {
        alignas(64) A numbers[kWidth<A>];
        std::transform(from, from + kWidth<A>, numbers, [](T x) { return detail::convert<A>(x); });
        return hn::Load(Tag<A>(), numbers);
    }
}

template <class A, class T>
HWY_INLINE void StoreVector(Vec<A> x, T* to) {
    const Tag<A> d;
    if constexpr (std::is_same_v<A, T>) {
        hn::StoreU(x, d, to);
    } else {
        const hn::Rebind<std::uint16_t, Tag<A>> d16;
        auto* bits = reinterpret_cast<std::uint16_t*>(to);
        if constexpr (std::is_same_v<T, BFloat16>) {
            // Rounds to nearest, ties to even; a NaN stays a quiet NaN.
            const hn::RebindToUnsigned<Tag<A>> du;
            const hn::RebindToSigned<Tag<A>> di;
            const auto wide = hn::BitCast(du, x);
            const auto odd = hn::And(hn::ShiftRight<16>(wide), hn::Set(du, 1));
            const auto rounded = hn::ShiftRight<16>(hn::Add(wide, hn::Add(odd, hn::Set(du, 0x7FFF))));
            const auto quiet = hn::Or(hn::ShiftRight<16>(wide), hn::Set(du, 0x40));
            const auto nan = hn::RebindMask(du, hn::IsNaN(x));
            hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, hn::IfThenElse(nan, quiet, rounded))), d16, bits);
        } else {
            const hn::Rebind<hwy::float16_t, Tag<A>> half;
            hn::StoreU(hn::BitCast(d16, hn::DemoteTo(half, x)), d16, bits);
        }
    }
}

template <class A, class T>
bool LoadTyped(A* HWY_RESTRICT to, std::int64_t to_stride, const T* HWY_RESTRICT from, std::int64_t from_stride,
               std::int64_t rows, std::int64_t width, A factor) {
    const Tag<A> d;
    const auto scale = hn::Set(d, factor);
    if (from_stride == width && to_stride == width) {
        width *= rows;  // rows that lie side by side are one long row
        rows = rows == 0 ? 0 : 1;
    }
    // x − x is 0 for finite x and NaN for all else: a NaN's bits, once in, stay in.
    auto zeros = hn::Zero(d);
    for (std::int64_t r = 0; r < rows; ++r) {
        std::int64_t i = 0;
        if constexpr (kVectorised<A, T>) {
            for (; i + kWidth<A> <= width; i += kWidth<A>) {
                const auto x = LoadVector<A>(from + i);
                zeros = hn::Or(zeros, hn::Sub(x, x));
                hn::Store(hn::Mul(x, scale), d, to + i);
            }
        }
        for (std::int64_t rest = i; rest < padded(width); rest += kWidth<A>) {
            hn::Store(hn::Zero(d), d, to + rest);
        }
        if (i < width) {
            A last = A(0);
            for (; i < width; ++i) {
                const A x = detail::convert<A>(from[i]);
                last += x * A(0);
                to[i] = x * factor;
            }
            zeros = hn::Or(zeros, hn::Set(d, last));
        }
        from += from_stride;
        to += to_stride;
    }
    return hn::AllFalse(d, hn::IsNaN(zeros));
}

template <class A>
bool Load(A* to, std::int64_t to_stride, const Rows& from, std::int64_t width, A factor) {
    bool finite = true;
    detail::with_storage(from.dtype, from.data, [&](const auto* typed) {
        finite = LoadTyped(to, to_stride, typed, from.stride, from.rows, width, factor);
    });
    return finite;
}

template <class A, class T>
void StoreTyped(T* HWY_RESTRICT to, std::int64_t to_stride, const A* HWY_RESTRICT from, std::int64_t rows,
                std::int64_t width, const A* factors, std::int64_t factor_step) {
    const Tag<A> d;
    for (std::int64_t r = 0; r < rows; ++r) {
        const A factor = factors[r * factor_step];
        std::int64_t i = 0;
        if constexpr (kVectorised<A, T>) {
            const auto scale = hn::Set(d, factor);
            for (; i + kWidth<A> <= width; i += kWidth<A>) {
                StoreVector<A>(hn::Add(hn::Mul(hn::Load(d, from + i), scale), hn::Zero(d)), to + i);
            }
        }
        for (; i < width; ++i) {
            to[i] = detail::convert<T>(from[i] * factor + A(0));
        }
        from += padded(width);
        to += to_stride;
    }
}

template <class A>
void Store(const RowsOut& to, const A* from, std::int64_t width, const A* factors, std::int64_t factor_step) {
    detail::with_storage(to.dtype, to.data, [&](auto* typed) {
        StoreTyped(typed, to.stride, from, to.rows, width, factors, factor_step);
    });
}

template <class A>
void DotRows(A* dots, const A* a, const A* b, std::int64_t rows, std::int64_t width) {
    const Tag<double> d;
    for (std::int64_t r = 0; r < rows; ++r) {
        auto sum = hn::Zero(d);
        for (std::int64_t i = 0; i < padded(width); i += kWidth<double>) {
            sum = hn::MulAdd(LoadWide(a + i), LoadWide(b + i), sum);
        }
        dots[r] = static_cast<A>(hn::GetLane(hn::SumOfLanes(d, sum)));
        a += padded(width);
        b += padded(width);
    }
}

/// Asks for up to so many lines along some steps, evenly: of a burst most are lost.
class AskedAlong {
public:
    AskedAlong(Ahead* ahead, std::int64_t lines, std::int64_t steps)
        : lines_(ahead == nullptr ? Ahead::Lines{} : ahead->take(lines)),
          each_((lines_.count + steps - 1) / std::max<std::int64_t>(1, steps)),
          every_(steps / std::max<std::int64_t>(1, lines_.count)) {}
    HWY_INLINE void step() {
        if (--wait_ > 0) {
            return;
        }
        wait_ = every_;
        for (std::int64_t i = 0; i < each_; ++i) {
            __builtin_prefetch(lines_.at, 0, 3);
            lines_.at += Ahead::kLine;
            if (lines_.at >= lines_.row_end) {  // past the last, too: no harm, and nobody counts
                lines_.row_end += lines_.row_step;
                lines_.at = lines_.row_end - lines_.row_bytes;
            }
        }
    }

private:
    Ahead::Lines lines_;
    std::int64_t each_;
    std::int64_t every_;  // so many steps
    std::int64_t wait_ = 1;
};
/// Who asks for nothing.
struct NothingAsked {
    HWY_INLINE void step() const {}
};

#if HWY_TARGET != HWY_SCALAR
/// Four numbers of each of kLanesWanted rows: rows row, row + 4, row + 8 … one after another.
template <std::size_t kLanesWanted, class FourOf>
HWY_INLINE hn::Vec<hn::FixedTag<float, kLanesWanted>> EveryFourth(const FourOf& four_of, std::int64_t row) {
    if constexpr (kLanesWanted == 4) {
        return four_of(row);
    } else {
        constexpr std::size_t kHalf = kLanesWanted / 2;
        return hn::Combine(hn::FixedTag<float, kLanesWanted>(),
                           EveryFourth<kHalf>(four_of, row + static_cast<std::int64_t>(kHalf)),
                           EveryFourth<kHalf>(four_of, row));
    }
}

/// Four columns of as many rows as a vector holds: with rows 4p, 4p + 1, 4p + 2, 4p + 3 in the same place p of four
/// vectors, two rounds of interleaving are all it takes.
template <class FourOf>
HWY_INLINE void FourColumns(Vec<float> (&columns)[4], const FourOf& four_of) {
    const Tag<float> d;
    const hn::Repartition<std::uint64_t, Tag<float>> d64;
    constexpr auto kRows = static_cast<std::size_t>(kWidth<float>);
    const auto a = EveryFourth<kRows>(four_of, 0);
    const auto b = EveryFourth<kRows>(four_of, 1);
    const auto c = EveryFourth<kRows>(four_of, 2);
    const auto e = EveryFourth<kRows>(four_of, 3);
    const auto ab_low = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ce_low = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto ce_high = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    columns[0] = hn::BitCast(d, hn::InterleaveLower(d64, ab_low, ce_low));
    columns[1] = hn::BitCast(d, hn::InterleaveUpper(d64, ab_low, ce_low));
    columns[2] = hn::BitCast(d, hn::InterleaveLower(d64, ab_high, ce_high));
    columns[3] = hn::BitCast(d, hn::InterleaveUpper(d64, ab_high, ce_high));
}

template <class FourOf>
HWY_INLINE void TransposeFourColumns(float* HWY_RESTRICT to, std::int64_t to_stride, const FourOf& four_of) {
    Vec<float> columns[4];
    FourColumns(columns, four_of);
    HWY_UNROLL(4)
    for (std::int64_t column = 0; column < 4; ++column) {
        hn::Store(columns[column], Tag<float>(), to + column * to_stride);
    }
}

/// to (width, to_stride), columns [0, columns) of it ← the transpose of `rows` rows, of which four_at(row, column)
/// gives four numbers; zeros past them. width is a multiple of 4, columns are one of a vector.
template <class FourAt>
HWY_INLINE void TransposeFloats(float* HWY_RESTRICT to, std::int64_t to_stride, std::int64_t columns, std::int64_t rows,
                                std::int64_t width, const FourAt& four_at, Ahead* ahead) {
    for (std::int64_t r = 0; r < columns; r += kWidth<float>) {
        AskedAlong asked(ahead, ahead == nullptr ? 0 : ahead->packing_pace * width / 4, width / 4);
        for (std::int64_t i = 0; i < width; i += 4) {
            asked.step();
            float* at = to + i * to_stride + r;
            if (r >= rows) {
                for (std::int64_t column = 0; column < 4; ++column) {
                    hn::Store(hn::Zero(Tag<float>()), Tag<float>(), at + column * to_stride);
                }
            } else if (r + kWidth<float> <= rows) {
                TransposeFourColumns(at, to_stride, [&](std::int64_t row) HWY_ATTR { return four_at(r + row, i); });
            } else {
                TransposeFourColumns(at, to_stride, [&](std::int64_t row) HWY_ATTR {
                    return r + row < rows ? four_at(r + row, i) : hn::Zero(hn::FixedTag<float, 4>());
                });
            }
        }
    }
}

/// Four numbers that are stored side by side.
template <class T>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> LoadFour(const T* from) {
    const hn::FixedTag<float, 4> d;
    if constexpr (std::is_same_v<T, float>) {
        return hn::LoadU(d, from);
    } else {
        const hn::FixedTag<std::uint16_t, 4> d16;
        const auto bits = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(from));
        if constexpr (std::is_same_v<T, BFloat16>) {
            return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(hn::FixedTag<std::uint32_t, 4>(), bits)));
        } else {
            return hn::PromoteTo(d, hn::BitCast(hn::FixedTag<hwy::float16_t, 4>(), bits));
        }
    }
}
#endif

/// Rows of keys to panels of kColumns of them, each (padded(width), kColumns), one after another, as columns `first`
/// and on; zeros past the rows in the vectors of kLanes of which some are there. Numbers up to the next multiple of
/// four are there to be read.
template <class A, std::int64_t kColumns, class T>
void TransposeToPanels(A* to, std::int64_t first, const T* from, std::int64_t from_stride, std::int64_t rows,
                       std::int64_t width, [[maybe_unused]] Ahead* ahead) {
    const std::int64_t columns = padded(rows);
    const std::int64_t across = padded(width);
    const auto column_at = [&](std::int64_t column) {
        return to + column / kColumns * kColumns * across + column % kColumns;
    };
#if HWY_TARGET != HWY_SCALAR
    if constexpr (std::is_same_v<A, float>) {
        for (std::int64_t done = 0; done < columns;) {
            const std::int64_t here = std::min(kColumns - (first + done) % kColumns, columns - done);
            TransposeFloats(
                column_at(first + done), kColumns, here, rows - done, (width + 3) / 4 * 4,
                [&](std::int64_t row, std::int64_t i)
                    HWY_ATTR { return LoadFour(from + (done + row) * from_stride + i); },
                ahead);
            done += here;
        }
        return;
    }
#endif
    for (std::int64_t r = 0; r < columns; ++r) {
        A* column = column_at(first + r);
        for (std::int64_t i = 0; i < width; ++i) {
            column[i * kColumns] = r < rows ? detail::convert<A>(from[r * from_stride + i]) : A(0);
        }
    }
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
