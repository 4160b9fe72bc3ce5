// From products to scores to weights.
#pragma once

#include "kernels/vector-inl.hpp"

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
void Add(A* scores, const A* bias, std::int64_t rows) {
    const Tag<A> d;
    for (std::int64_t i = 0; i < rows * kKeyTile; i += kWidth<A>) {
        hn::Store(hn::Add(hn::Load(d, scores + i), hn::Load(d, bias + i)), d, scores + i);
    }
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

template <class A>
void Mask(A* scores, const std::uint8_t* allowed, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t r = 0; r < rows; ++r) {
        A* row = scores + r * kKeyTile;
        if (allowed != nullptr) {
            for (std::int64_t c = 0; c < kKeyTile; c += kWidth<A>) {
#if HWY_TARGET == HWY_SCALAR
                row[c] = allowed[r * kKeyTile + c] != 0 ? row[c] : kMinusInfinity<A>;
#else
                const Tag<A> d;
                const hn::Rebind<std::uint8_t, Tag<A>> d8;
                const hn::RebindToSigned<Tag<A>> di;
                const hn::Rebind<std::int32_t, Tag<A>> d32;
                const auto bytes = hn::PromoteTo(d32, hn::LoadU(d8, allowed + r * kKeyTile + c));
                const auto wide = [&]() HWY_ATTR {
                    if constexpr (sizeof(A) == 8) {
                        return hn::PromoteTo(di, bytes);
                    } else {
                        return bytes;
                    }
                }();
                const auto off = hn::RebindMask(d, hn::Eq(wide, hn::Zero(di)));
                hn::Store(hn::IfThenElse(off, hn::Set(d, kMinusInfinity<A>), hn::Load(d, row + c)), d, row + c);
#endif
            }
        }
        for (std::int64_t c = columns; c < kKeyTile; ++c) {
            row[c] = kMinusInfinity<A>;
        }
    }
}

/// How weights are computed and kept: as exactly as A goes.
template <class A>
struct ExactWeights {
    /// exp(x), x <= kSlack
    static HWY_INLINE Vec<A> Exp(Vec<A> x) { return HWY_NAMESPACE::Exp<true>(x); }
    /// exp(x − base) for a row.
    struct Row {
        HWY_INLINE explicit Row(A row_base) : base(hn::Set(Tag<A>(), row_base)) {}
        HWY_INLINE Vec<A> operator()(Vec<A> x) const { return Exp(hn::Sub(x, base)); }  // x <= base + kSlack
        HWY_INLINE Vec<A> OfAny(Vec<A> x) const { return HWY_NAMESPACE::Exp<false>(hn::Sub(x, base)); }

        Vec<A> base;
    };
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

template <class A, class Weights, bool kScaled>
void SoftenRows(A* weights, const A* scores, A scale, const A* HWY_RESTRICT factors, const SoftmaxRows<A>& softmax,
                A* context, std::int64_t width, std::int64_t rows) {
    const Tag<A> d;
    const auto factor = hn::Set(d, scale);
    constexpr auto kVectors = static_cast<std::size_t>(kKeyTile / kWidth<A>);
    for (std::int64_t r = 0; r < rows; ++r) {
        const A* score = scores + r * kKeyTile;
        A* weight = weights + r * kKeyTile;
        A* sums = softmax.sums + r * kLanes;
        Vec<A> x[kVectors];
        for (std::size_t v = 0; v < kVectors; ++v) {
            x[v] = hn::Load(d, score + static_cast<std::int64_t>(v) * kWidth<A>);
        }
        auto largest = x[0];
        for (std::size_t v = 1; v < kVectors; ++v) {
            largest = hn::Max(largest, x[v]);
        }
        largest = kScaled ? hn::Mul(largest, factor) : largest;
        A& reference = softmax.reference[r];
        if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Gt(largest, hn::Set(d, reference + SoftmaxRows<A>::kSlack))))) {
            MoveReference<A, Weights>(largest, &reference, sums, context + r * padded(width), padded(width));
        }
        // A row of nothing but −∞ must not become −∞ − −∞.
        const typename Weights::Row exp(reference == kMinusInfinity<A> ? A(0) : reference);
        auto sum = hn::Load(d, sums);
        for (std::size_t v = 0; v < kVectors; ++v) {
            const auto c = static_cast<std::int64_t>(v) * kWidth<A>;
            auto w = exp(kScaled ? hn::Mul(x[v], factor) : x[v]);
            sum = hn::Add(sum, w);
            if (factors != nullptr) {
                w = hn::Mul(w, hn::Load(d, factors + r * kKeyTile + c));
            }
            Weights::Put(w, weight, c);
        }
        hn::Store(sum, d, sums);
    }
}

template <class A, class Weights>
void Soften(A* weights, const A* scores, A scale, const A* factors, const SoftmaxRows<A>& softmax, A* context,
            std::int64_t width, std::int64_t rows) {
    const auto soften = scale == A(1) ? SoftenRows<A, Weights, false> : SoftenRows<A, Weights, true>;
    soften(weights, scores, scale, factors, softmax, context, width, rows);
}

template <class A, class Weights>
void Weigh(A* weights, const A* scores, const A* base, std::int64_t rows) {
    const Tag<A> d;
    for (std::int64_t r = 0; r < rows; ++r) {
        const typename Weights::Row exp(base[r] == kMinusInfinity<A> ? A(0) : base[r]);
        for (std::int64_t c = 0; c < kKeyTile; c += kWidth<A>) {
            hn::Store(exp.OfAny(hn::Load(d, scores + r * kKeyTile + c)), d, weights + r * kKeyTile + c);
        }
    }
}

template <class A, class Weights>
void ScoreGradients(A* HWY_RESTRICT weights, A* HWY_RESTRICT gradients, const A* HWY_RESTRICT scores,
                    const A* HWY_RESTRICT factors, const A* lse, const A* delta, std::int64_t rows) {
    const Tag<A> d;
    for (std::int64_t r = 0; r < rows; ++r) {
        const typename Weights::Row exp(lse[r] == kMinusInfinity<A> ? A(0) : lse[r]);
        const auto row_delta = hn::Set(d, delta[r]);
        for (std::int64_t at = r * kKeyTile; at < (r + 1) * kKeyTile; at += kWidth<A>) {
            const auto score = hn::Load(d, scores + at);
            auto weight = exp.OfAny(score);
            auto gradient = hn::Load(d, gradients + at);
            if (factors != nullptr) {
                const auto factor = hn::Load(d, factors + at);
                gradient = hn::Mul(weight, hn::Sub(hn::Mul(factor, gradient), row_delta));
                weight = hn::Mul(weight, factor);
            } else {
                gradient = hn::Mul(weight, hn::Sub(gradient, row_delta));
            }
            const auto masked = hn::Eq(score, hn::Set(d, kMinusInfinity<A>));
            hn::Store(hn::IfThenZeroElse(masked, weight), d, weights + at);
            hn::Store(hn::IfThenZeroElse(masked, gradient), d, gradients + at);
        }
    }
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
