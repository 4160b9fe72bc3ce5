// From products to scores to weights.
#pragma once

#include "kernels/rows-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

template <class A>
void Cap(A* scores, std::int64_t rows, A cap) {
    const Tag<A> d;
    const auto limit = hn::Set(d, cap);
    const auto inverse = hn::Set(d, A(1) / cap);
    for (std::int64_t i = 0; i < rows * kKeyTile; i += kWidth<A>) {
        hn::Store(hn::Mul(limit, Tanh(hn::Mul(hn::Load(d, scores + i), inverse))), d, scores + i);
    }
}

template <class A>
void Scale(A* scores, std::int64_t rows, A factor) {
    const Tag<A> d;
    for (std::int64_t i = 0; i < rows * kKeyTile; i += kWidth<A>) {
        hn::Store(hn::Mul(hn::Load(d, scores + i), hn::Set(d, factor)), d, scores + i);
    }
}

template <class A>
void Add(A* scores, const Rows& bias, A factor) {
    const Tag<A> d;
    detail::with_storage(bias.dtype, bias.data, [&]<class T>(const T* from) HWY_ATTR {
        // Copies: what is captured would be read again after every store.
        A* to = scores;
        const auto scale = hn::Set(d, factor);
        const auto masked = hn::Set(d, kMinusInfinity<A>);
        const std::int64_t stride = bias.stride;
        for (std::int64_t left = bias.rows; left > 0; --left, from += stride, to += kKeyTile) {
            for (std::int64_t c = 0; c < kKeyTile; c += kWidth<A>) {
                const auto add = LoadNumbers<A>(from + c);
                const auto sum = hn::Add(hn::Mul(hn::Load(d, to + c), scale), add);
                hn::Store(hn::IfThenElse(hn::Eq(add, masked), masked, sum), d, to + c);
            }
        }
    });
}

template <class A>
void Slope(A* scores, std::int64_t rows, A slope, A distance) {
    const Tag<A> d;
    const auto factor = hn::Set(d, slope);
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < kKeyTile; c += kWidth<A>) {
            A* at = scores + r * kKeyTile + c;
            // Whole numbers below 2^24: exact in any order.
            const auto away = hn::Sub(hn::Set(d, distance + static_cast<A>(r - c)), hn::Iota(d, A(0)));
            hn::Store(hn::NegMulAdd(factor, hn::Abs(away), hn::Load(d, at)), d, at);
        }
    }
}

/// Masks of a tile's row are words, bit c for column c.
static_assert(kKeyTile == 64);

template <class A>
void Mask(A* scores, const std::uint64_t* allowed, std::int64_t rows) {
    [[maybe_unused]] const Tag<A> d;
    for (std::int64_t r = 0; r < rows; ++r) {
        if (allowed[r] == ~std::uint64_t{0}) {
            continue;
        }
        for (std::int64_t c = 0; c < kKeyTile; c += kWidth<A>) {
            const std::uint64_t here = allowed[r] >> static_cast<unsigned>(c);
            A* at = scores + r * kKeyTile + c;
#if HWY_TARGET == HWY_SCALAR
            *at = (here & 1U) != 0 ? *at : kMinusInfinity<A>;
#else
            const auto kept = hn::LoadMaskBits(d, reinterpret_cast<const std::uint8_t*>(&here));
            hn::Store(hn::IfThenElse(kept, hn::Load(d, at), hn::Set(d, kMinusInfinity<A>)), d, at);
#endif
        }
    }
}

/// Bit c: what where(c), a mask of T's vectors, says of kKeyTile columns.
template <class T, class Where>
HWY_INLINE std::uint64_t BitsWhere(const Where& where) {
    std::uint64_t bits = 0;
    for (std::int64_t c = 0; c < kKeyTile; c += kWidth<T>) {
        std::uint64_t here = 0;
#if HWY_TARGET == HWY_SCALAR
        here = hn::AllTrue(Tag<T>(), where(c)) ? 1 : 0;
#elif HWY_TARGET == HWY_AVX3
        here = where(c).raw;  // stored in two bytes and read as eight, it would wait for the store
#else
        (void)hn::StoreMaskBits(Tag<T>(), where(c), reinterpret_cast<std::uint8_t*>(&here));
        if constexpr (kWidth<T> < kKeyTile) {
            here &= (std::uint64_t{1} << static_cast<unsigned>(kWidth<T>)) - 1;  // beyond, anything
        }
#endif
        bits |= here << static_cast<unsigned>(c);
    }
    return bits;
}

inline void KeepTrue(std::uint64_t* allowed, const std::uint8_t* bytes, std::int64_t stride, std::int64_t rows) {
    const Tag<std::uint8_t> d;
    for (std::int64_t r = 0; r < rows; ++r, bytes += stride) {
        allowed[r] &= BitsWhere<std::uint8_t>([&](std::int64_t c)
                                                  HWY_ATTR { return hn::Ne(hn::LoadU(d, bytes + c), hn::Zero(d)); });
    }
}

template <class A>
void KeepUnmasked(std::uint64_t* allowed, const Rows& bias) {
    const auto masked = hn::Set(Tag<A>(), kMinusInfinity<A>);
    detail::with_storage(bias.dtype, bias.data, [&]<class T>(const T* from) HWY_ATTR {
        for (std::int64_t r = 0; r < bias.rows; ++r, from += bias.stride) {
            // Not(Eq): for NaN, which stays, Ne is what the instruction set likes.
            allowed[r] &= BitsWhere<A>([&](std::int64_t c)
                                           HWY_ATTR { return hn::Not(hn::Eq(LoadNumbers<A>(from + c), masked)); });
        }
    });
}

/// How weights are computed and kept: as exactly as A goes.
template <class A>
struct ExactWeights {
    /// exp(x), x <= kSlack
    static HWY_INLINE Vec<A> Exp(Vec<A> x) { return HWY_NAMESPACE::Exp<true>(x); }
    /// What stands for x − base of a row, and exp(x − base) of it, a few side by side. kSmall: x <= base + kSlack
    struct Row {
        HWY_INLINE explicit Row(A row_base) : base(hn::Set(Tag<A>(), row_base)) {}
        [[nodiscard]] HWY_INLINE Vec<A> Above(Vec<A> x) const { return hn::Sub(x, base); }

        Vec<A> base;
    };
    template <bool kSmall, std::size_t kCount>
    static HWY_INLINE void ExpAbove(Vec<A> (&x)[kCount]) {
        ExpEach<kSmall>(x);
    }
    /// The weights of columns from c on, of a row that begins at `row`.
    static HWY_INLINE void Put(Vec<A> weights, A* row, std::int64_t c) { hn::Store(weights, Tag<A>(), row + c); }
};

/// Moves a row's reference up to its largest score, and everything that rests on it.
template <class A, class Weights>
HWY_NOINLINE void MoveReference(Vec<A> largest, A* reference, A* sums, A* context, std::int64_t width) {
    const Tag<A> d;
    const A moved = hn::GetLane(hn::MaxOfLanes(d, largest));
    const A before = *reference;
    *reference = moved;
    if (before == kMinusInfinity<A>) {
        return;  // nothing has been added yet
    }
    const auto shrink = Weights::Exp(hn::Set(d, before - moved));
    for (std::int64_t i = 0; i < kLanes; i += kWidth<A>) {
        hn::Store(hn::Mul(hn::Load(d, sums + i), shrink), d, sums + i);
    }
    for (std::int64_t i = 0; i < width; i += kWidth<A>) {
        hn::Store(hn::Mul(hn::Load(d, context + i), shrink), d, context + i);
    }
}

/// Vectors of a row that are computed side by side.
template <class A>
inline constexpr std::size_t kAtOnce = std::min(kSideBySide, static_cast<std::size_t>(kKeyTile / kWidth<A>));

/// Rows of which kVectors are computed, all that columns there are: kRows at a time where a row is less than what is
/// computed side by side.
template <class A, class Weights, bool kScaled, std::size_t kVectors, std::size_t kRows = kAtOnce<A> / kVectors>
void SoftenRows(A* weights, const A* scores, A scale, const A* factors, SoftmaxRows<A> softmax, A* context,
                std::int64_t width, std::int64_t rows, std::int64_t columns) {
    const Tag<A> d;
    const auto factor = hn::Set(d, scale);
    constexpr std::size_t kCount = kRows * kVectors;
    constexpr std::int64_t kStep = static_cast<std::int64_t>(kVectors) * kWidth<A>;
    constexpr bool kStays = kVectors < kAtOnce<A> || kStep == kKeyTile;               // in registers
    const std::int64_t end = kStays ? kStep : (columns + kStep - 1) / kStep * kStep;  // past the columns all is −∞
    const auto at = [](std::size_t i, std::int64_t c) HWY_ATTR {
        return static_cast<std::int64_t>(i / kVectors) * kKeyTile + c +
               static_cast<std::int64_t>(i % kVectors) * kWidth<A>;
    };
    for (; rows >= static_cast<std::int64_t>(kRows); rows -= static_cast<std::int64_t>(kRows)) {
        Vec<A> w[kCount];
        const auto load = [&](std::int64_t c) HWY_ATTR {
            ForEach<kCount>([&](std::size_t i) HWY_ATTR { w[i] = hn::Load(d, scores + at(i, c)); });
        };
        load(0);
        Vec<A> largest[kRows];
        ForEach<kRows>([&](std::size_t r) HWY_ATTR { largest[r] = w[r * kVectors]; });
        ForEach<kCount>([&](std::size_t i) HWY_ATTR { largest[i / kVectors] = hn::Max(largest[i / kVectors], w[i]); });
        for (std::int64_t c = kStep; c < end; c += kWidth<A>) {
            largest[0] = hn::Max(largest[0], hn::Load(d, scores + c));
        }
        ForEach<kRows>([&](std::size_t r) HWY_ATTR {
            const auto most = kScaled ? hn::Mul(largest[r], factor) : largest[r];
            A& reference = softmax.reference[r];
            if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Gt(most, hn::Set(d, reference + SoftmaxRows<A>::kSlack))))) {
                MoveReference<A, Weights>(most, &reference, softmax.sums + r * kLanes,
                                          context + static_cast<std::int64_t>(r) * padded(width), padded(width));
            }
        });
        for (std::int64_t c = 0; c < end; c += kStep) {
            if constexpr (!kStays) {
                load(c);
            }
            ForEach<kRows>([&](std::size_t r) HWY_ATTR {
                // A row of nothing but −∞ must not become −∞ − −∞.
                const A reference = softmax.reference[r];
                const typename Weights::Row row(reference == kMinusInfinity<A> ? A(0) : reference);
                ForEach<kVectors>([&](std::size_t v) HWY_ATTR {
                    auto& x = w[r * kVectors + v];
                    x = row.Above(kScaled ? hn::Mul(x, factor) : x);
                });
            });
            Weights::template ExpAbove<true>(w);
            ForEach<kRows>([&](std::size_t r) HWY_ATTR {
                A* sums = softmax.sums + r * kLanes;
                auto sum = hn::Load(d, sums);
                ForEach<kVectors>([&](std::size_t v) HWY_ATTR {
                    const std::size_t i = r * kVectors + v;
                    sum = hn::Add(sum, w[i]);
                    if (factors != nullptr) {
                        w[i] = hn::Mul(w[i], hn::Load(d, factors + at(i, c)));
                    }
                    Weights::Put(w[i], weights + at(r * kVectors, 0), at(v, c));
                });
                hn::Store(sum, d, sums);
            });
        }
        scores += at(kCount, 0);
        weights += at(kCount, 0);
        factors = factors == nullptr ? nullptr : factors + at(kCount, 0);
        softmax.reference += kRows;
        softmax.sums += kRows * kLanes;
        context += static_cast<std::int64_t>(kRows) * padded(width);
    }
    if constexpr (kRows > 1) {
        if (rows > 0) {
            SoftenRows<A, Weights, kScaled, kVectors, 1>(weights, scores, scale, factors, softmax, context, width, rows,
                                                         columns);
        }
    }
}

template <class A, class Weights>
void Soften(A* weights, const A* scores, A scale, const A* factors, const SoftmaxRows<A>& softmax, A* context,
            std::int64_t width, std::int64_t rows, std::int64_t columns) {
    const auto soften = [&]<std::size_t kVectors>() HWY_ATTR {
        const auto all =
            scale == A(1) ? SoftenRows<A, Weights, false, kVectors> : SoftenRows<A, Weights, true, kVectors>;
        all(weights, scores, scale, factors, softmax, context, width, rows, columns);
    };
    if (kAtOnce<A> > 1 && columns <= kWidth<A>) {
        soften.template operator()<1>();
    } else {
        soften.template operator()<kAtOnce<A>>();
    }
}

template <class A, class Weights>
void Weigh(A* weights, const A* scores, const A* base, std::int64_t rows) {
    const Tag<A> d;
    for (std::int64_t r = 0; r < rows; ++r) {
        const typename Weights::Row row(base[r] == kMinusInfinity<A> ? A(0) : base[r]);
        for (std::int64_t c = 0; c < kKeyTile; c += kWidth<A>) {
            Vec<A> w[1] = {row.Above(hn::Load(d, scores + r * kKeyTile + c))};
            Weights::template ExpAbove<false>(w);
            hn::Store(w[0], d, weights + r * kKeyTile + c);
        }
    }
}

template <class A, class Weights>
void ScoreGradients(A* HWY_RESTRICT weights, A* HWY_RESTRICT gradients, const A* HWY_RESTRICT scores,
                    const A* HWY_RESTRICT factors, const A* lse, const A* delta, std::int64_t rows) {
    const Tag<A> d;
    constexpr std::int64_t kStep = static_cast<std::int64_t>(kAtOnce<A>) * kWidth<A>;
    for (std::int64_t r = 0; r < rows; ++r) {
        const typename Weights::Row row(lse[r] == kMinusInfinity<A> ? A(0) : lse[r]);
        const auto row_delta = hn::Set(d, delta[r]);
        for (std::int64_t begin = r * kKeyTile; begin < (r + 1) * kKeyTile; begin += kStep) {
            Vec<A> w[kAtOnce<A>];
            ForEach<kAtOnce<A>>([&](std::size_t v) HWY_ATTR {
                w[v] = row.Above(hn::Load(d, scores + begin + static_cast<std::int64_t>(v) * kWidth<A>));
            });
            Weights::template ExpAbove<false>(w);
            ForEach<kAtOnce<A>>([&](std::size_t v) HWY_ATTR {
                const std::int64_t at = begin + static_cast<std::int64_t>(v) * kWidth<A>;
                auto weight = w[v];
                auto gradient = hn::Load(d, gradients + at);
                if (factors != nullptr) {
                    const auto factor = hn::Load(d, factors + at);
                    gradient = hn::Mul(weight, hn::Sub(hn::Mul(factor, gradient), row_delta));
                    weight = hn::Mul(weight, factor);
                } else {
                    gradient = hn::Mul(weight, hn::Sub(gradient, row_delta));
                }
                const auto masked = hn::Eq(hn::Load(d, scores + at), hn::Set(d, kMinusInfinity<A>));
                hn::Store(hn::IfThenZeroElse(masked, weight), d, weights + at);
                hn::Store(hn::IfThenZeroElse(masked, gradient), d, gradients + at);
            });
        }
    }
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
