// The verbs of layers. What is a plain loop here the compiler turns into vectors of the instruction set; its sums run
// in 16 interleaved chains so that it may.
#pragma once

#include <algorithm>
#include <numbers>

#include "kernels/layers.hpp"
#include "kernels/vector-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

/// y[i] ← function(from[i]...), vectors at a time; the last ones by way of a vector that is not full.
template <class A, class Function, class... From>
HWY_INLINE void Map(A* y, std::int64_t count, const Function& function, const From*... from) {
    const Tag<A> d;
    std::int64_t i = 0;
    for (; i + kWidth<A> <= count; i += kWidth<A>) {
        hn::StoreU(function(hn::LoadU(d, from + i)...), d, y + i);
    }
    if (i < count) {
        alignas(64) A lanes[kWidth<A>];
        const auto last = [&](const A* data) HWY_ATTR {
            std::fill(std::copy(data + i, data + count, lanes), lanes + kWidth<A>, A(0));
            return hn::Load(d, lanes);
        };
        hn::Store(function(last(from)...), d, lanes);
        std::copy(lanes, lanes + (count - i), y + i);
    }
}

/// Σ term(i), in double: 16 interleaved chains, folded, then what is left over.
template <class Term>
HWY_INLINE double Sum(std::int64_t count, const Term& term) {
    constexpr std::int64_t kChains = 16;
    double chains[kChains] = {};
    std::int64_t i = 0;
    for (; i + kChains <= count; i += kChains) {
        for (std::int64_t chain = 0; chain < kChains; ++chain) {
            chains[chain] += term(i + chain);
        }
    }
    for (std::int64_t half = kChains / 2; half > 0; half /= 2) {
        for (std::int64_t chain = 0; chain < half; ++chain) {
            chains[chain] += chains[chain + half];
        }
    }
    for (; i < count; ++i) {
        chains[0] += term(i);
    }
    return chains[0];
}

template <class A>
struct GeluTanh {
    static constexpr A kRoot = static_cast<A>(std::numbers::sqrt2 * std::numbers::inv_sqrtpi);  // √(2/π)
    static constexpr A kCubic = static_cast<A>(0.044715);

    /// −2u
    static HWY_INLINE Vec<A> Exponent(Vec<A> x, Vec<A> square) {
        const Tag<A> d;
        const auto inner = hn::Mul(x, hn::MulAdd(square, hn::Set(d, kCubic), hn::Set(d, A(1))));
        return hn::Mul(inner, hn::Set(d, A(-2) * kRoot));
    }
    struct Value {
        HWY_INLINE Vec<A> operator()(Vec<A> x) const {
            return hn::Div(x, hn::Add(hn::Set(Tag<A>(), A(1)), Exp<false>(Exponent(x, hn::Mul(x, x)))));
        }
    };
    /// σ + x σ (1 − σ) 2u', with σ = 1 / (1 + e) and 1 − σ = e σ for e = exp(−2u)
    struct Slope {
        HWY_INLINE Vec<A> operator()(Vec<A> slope, Vec<A> x) const {
            const Tag<A> d;
            const auto one = hn::Set(d, A(1));
            // Farther out the slope is 0 or 1 and e may overflow. A NaN stays.
            const auto far = hn::Set(d, A(9));
            x = hn::IfThenElse(hn::Gt(hn::Abs(x), far), hn::CopySign(far, x), x);
            const auto square = hn::Mul(x, x);
            const auto decay = Exp<true>(Exponent(x, square));
            const auto sigma = hn::Div(one, hn::Add(one, decay));
            const auto steep = hn::Mul(hn::MulAdd(square, hn::Set(d, 3 * kCubic), one), hn::Set(d, 2 * kRoot));
            const auto bend = hn::Mul(hn::Mul(hn::Mul(x, decay), sigma), hn::Mul(steep, sigma));
            return hn::Mul(slope, hn::Add(sigma, bend));
        }
    };
};

/// Φ(−t) = exp(−t²/2) · s Q(s) for t >= 0, s = 1 / (1 + 0.21 t): the form of Hastings (1955), with three terms more
/// than his and coefficients fitted for the least relative error on 0 to 13.5, 1.4e-8.
HWY_INLINE Vec<float> NormalTail(Vec<float> t, Vec<float> density) {
    constexpr float kQ[] = {0.0837077051F, 0.0851294100F, 0.0687900409F, 0.126355156F,  -0.0972457230F,
                            0.354033679F,  -0.334189653F, 0.285453409F,  -0.0720339790F};
    const Tag<float> d;
    const auto one = hn::Set(d, 1.0F);
    const auto s = hn::Div(one, hn::MulAdd(t, hn::Set(d, 0.21F), one));
    auto q = hn::Set(d, kQ[8]);
    for (int i = 7; i >= 0; --i) {
        q = hn::MulAdd(q, s, hn::Set(d, kQ[i]));
    }
    return hn::Mul(density, hn::Mul(s, q));
}
HWY_INLINE Vec<double> NormalTail(Vec<double> t, Vec<double> /*density*/) {
    return EachLane(t, [](double lane) { return std::erfc(lane / std::numbers::sqrt2) / 2; });
}

template <class A>
struct GeluErf {
    /// exp(−x²/2)
    static HWY_INLINE Vec<A> Density(Vec<A> x) { return Exp<true>(hn::Mul(hn::Mul(x, hn::Set(Tag<A>(), A(-0.5))), x)); }
    static HWY_INLINE Vec<A> Integral(Vec<A> x, Vec<A> density) {
        const Tag<A> d;
        const auto tail = NormalTail(hn::Abs(x), density);
        return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, A(1)), tail));
    }
    struct Value {
        HWY_INLINE Vec<A> operator()(Vec<A> x) const { return hn::Mul(x, Integral(x, Density(x))); }
    };
    struct Slope {
        HWY_INLINE Vec<A> operator()(Vec<A> slope, Vec<A> x) const {
            const auto density = Density(x);
            const auto scaled =
                hn::Mul(x, hn::Set(Tag<A>(), static_cast<A>(std::numbers::inv_sqrtpi / std::numbers::sqrt2)));
            return hn::Mul(slope, hn::MulAdd(scaled, density, Integral(x, density)));
        }
    };
};

template <class A, class Form>
void Gelu(A* y, const A* x, std::int64_t count) {
    Map(y, count, typename Form::Value(), x);
}

template <class A, class Form>
void GeluBackward(A* d, const A* x, std::int64_t count) {
    Map(d, count, typename Form::Slope(), static_cast<const A*>(d), x);
}

/// visit(place, ones, load, store) for a row's places, a vector of doubles at a time. The last ones come in vectors
/// that are not full: the other lanes load as 0, are not stored, and are 0 in `ones`.
template <class Visit>
HWY_INLINE void ForWide(std::int64_t width, const Visit& visit) {
    const auto load = [](const auto* from) HWY_ATTR { return LoadWide(from); };
    const auto store = [](Vec<double> values, auto* to) HWY_ATTR { StoreWide(values, to); };
    std::int64_t i = 0;
    for (; i + kWidth<double> <= width; i += kWidth<double>) {
        visit(i, hn::Set(Tag<double>(), 1.0), load, store);
    }
    if (i < width) {
        const std::int64_t count = width - i;
        const auto there = hn::FirstN(Tag<double>(), static_cast<std::size_t>(count));
        const auto load_some = [count]<class A>(const A* from) HWY_ATTR {
            A lanes[kWidth<double>] = {};
            std::copy_n(from, count, lanes);
            return LoadWide(lanes);
        };
        const auto store_some = [count]<class A>(Vec<double> values, A* to) HWY_ATTR {
            A lanes[kWidth<double>];
            StoreWide(values, lanes);
            std::copy_n(lanes, count, to);
        };
        visit(i, hn::IfThenElseZero(there, hn::Set(Tag<double>(), 1.0)), load_some, store_some);
    }
}

HWY_INLINE double SumOf(Vec<double> lanes) { return hn::GetLane(hn::SumOfLanes(Tag<double>(), lanes)); }

/// Rows of layer norm that run side by side: each of them alone would wait for its own sums.
inline constexpr unsigned kNormRows = 8;

/// term(r) for each of kRows rows.
template <unsigned kRows, class Term>
HWY_INLINE void ForRows(const Term& term) {
    HWY_UNROLL(8)
    for (unsigned r = 0; r < kRows; ++r) {
        term(r);
    }
}

/// What makes each row's mean 0 and its variance 1: (x − mean) · inverse.
template <unsigned kRows, class A>
HWY_INLINE void MomentsOf(Vec<double> (&mean)[kRows], Vec<double> (&inverse)[kRows], const A* x, std::int64_t width,
                          double eps) {
    const Tag<double> d;
    const auto count = static_cast<double>(width);
    Vec<double> sums[kRows];
    ForRows<kRows>([&](unsigned r) HWY_ATTR { sums[r] = hn::Zero(d); });
    ForWide(width, [&](std::int64_t i, Vec<double>, const auto& load, const auto&) HWY_ATTR {
        ForRows<kRows>([&](unsigned r) HWY_ATTR { sums[r] = hn::Add(sums[r], load(x + r * width + i)); });
    });
    ForRows<kRows>([&](unsigned r) HWY_ATTR {
        mean[r] = hn::Set(d, SumOf(sums[r]) / count);
        sums[r] = hn::Zero(d);
    });
    ForWide(width, [&](std::int64_t i, Vec<double> one, const auto& load, const auto&) HWY_ATTR {
        ForRows<kRows>([&](unsigned r) HWY_ATTR {
            const auto distance = hn::Mul(hn::Sub(load(x + r * width + i), mean[r]), one);
            sums[r] = hn::MulAdd(distance, distance, sums[r]);
        });
    });
    ForRows<kRows>([&](unsigned r)
                       HWY_ATTR { inverse[r] = hn::Set(d, 1.0 / std::sqrt(SumOf(sums[r]) / count + eps)); });
}

template <unsigned kRows, class A>
HWY_INLINE void LayerNormRows(A* HWY_RESTRICT y, const A* HWY_RESTRICT x, const A* HWY_RESTRICT scale,
                              const A* HWY_RESTRICT shift, std::int64_t width, double eps) {
    Vec<double> mean[kRows], inverse[kRows];
    MomentsOf(mean, inverse, x, width, eps);
    ForWide(width, [&](std::int64_t i, Vec<double>, const auto& load, const auto& store) HWY_ATTR {
        const auto times = load(scale + i);
        const auto plus = load(shift + i);
        ForRows<kRows>([&](unsigned r) HWY_ATTR {
            const auto normal = hn::Mul(hn::Sub(load(x + r * width + i), mean[r]), inverse[r]);
            store(hn::MulAdd(normal, times, plus), y + r * width + i);
        });
    });
}

template <class A, unsigned kRows = kNormRows>
void LayerNorm(A* y, const A* x, const A* scale, const A* shift, std::int64_t rows, std::int64_t width, double eps) {
    for (; rows >= kRows; rows -= kRows) {
        LayerNormRows<kRows>(y, x, scale, shift, width, eps);
        y += kRows * width;
        x += kRows * width;
    }
    if constexpr (kRows > 1) {
        LayerNorm<A, 1>(y, x, scale, shift, rows, width, eps);
    }
}

template <unsigned kRows, class A>
HWY_INLINE void LayerNormBackwardRows(A* HWY_RESTRICT d_x, double* HWY_RESTRICT d_scale, double* HWY_RESTRICT d_shift,
                                      const A* HWY_RESTRICT x, const A* HWY_RESTRICT scale, const A* HWY_RESTRICT d_y,
                                      std::int64_t width, double eps) {
    const Tag<double> d;
    Vec<double> mean[kRows], inverse[kRows];
    MomentsOf(mean, inverse, x, width, eps);
    const auto normal = [&](Vec<double> value, unsigned r)
                            HWY_ATTR { return hn::Mul(hn::Sub(value, mean[r]), inverse[r]); };
    Vec<double> sums[kRows], sums_along[kRows];
    ForRows<kRows>([&](unsigned r) HWY_ATTR { sums[r] = sums_along[r] = hn::Zero(d); });
    ForWide(width, [&](std::int64_t i, Vec<double>, const auto& load, const auto& store) HWY_ATTR {
        const auto times = load(scale + i);
        auto to_scale = load(d_scale + i);
        auto to_shift = load(d_shift + i);
        ForRows<kRows>([&](unsigned r) HWY_ATTR {
            const auto along = normal(load(x + r * width + i), r);
            const auto slope = load(d_y + r * width + i);
            const auto g = hn::Mul(slope, times);
            sums[r] = hn::Add(sums[r], g);
            sums_along[r] = hn::MulAdd(g, along, sums_along[r]);
            to_scale = hn::MulAdd(slope, along, to_scale);
            to_shift = hn::Add(to_shift, slope);
        });
        store(to_scale, d_scale + i);
        store(to_shift, d_shift + i);
    });
    const auto count = static_cast<double>(width);
    ForRows<kRows>([&](unsigned r) HWY_ATTR {
        sums[r] = hn::Set(d, SumOf(sums[r]) / count);
        sums_along[r] = hn::Set(d, SumOf(sums_along[r]) / count);
    });
    ForWide(width, [&](std::int64_t i, Vec<double>, const auto& load, const auto& store) HWY_ATTR {
        const auto times = load(scale + i);
        ForRows<kRows>([&](unsigned r) HWY_ATTR {
            const auto g = hn::Mul(load(d_y + r * width + i), times);
            const auto along = normal(load(x + r * width + i), r);
            const auto rest = hn::NegMulAdd(along, sums_along[r], hn::Sub(g, sums[r]));
            store(hn::Mul(rest, inverse[r]), d_x + r * width + i);
        });
    });
}

template <class A, unsigned kRows = kNormRows>
void LayerNormBackward(A* d_x, double* d_scale, double* d_shift, const A* x, const A* scale, const A* d_y,
                       std::int64_t rows, std::int64_t width, double eps) {
    for (; rows >= kRows; rows -= kRows) {
        LayerNormBackwardRows<kRows>(d_x, d_scale, d_shift, x, scale, d_y, width, eps);
        d_x += kRows * width;
        x += kRows * width;
        d_y += kRows * width;
    }
    if constexpr (kRows > 1) {
        LayerNormBackward<A, 1>(d_x, d_scale, d_shift, x, scale, d_y, rows, width, eps);
    }
}

template <class A>
SoftmaxMoments<A> MomentsOfSoftmax(const A* x, std::int64_t count) {
    const Tag<A> d;
    auto largest = hn::Set(d, kMinusInfinity<A>);
    std::int64_t i = 0;
    for (; i + kWidth<A> <= count; i += kWidth<A>) {
        largest = hn::Max(largest, hn::LoadU(d, x + i));
    }
    A maximum = hn::GetLane(hn::MaxOfLanes(d, largest));
    for (; i < count; ++i) {
        maximum = std::max(maximum, x[i]);
    }
    // exp by vectors, their sum in double: blocks small enough to stay at hand.
    constexpr std::int64_t kBlock = 256;
    alignas(64) A weights[kBlock];
    double sum = 0;
    for (std::int64_t begin = 0; begin < count; begin += kBlock) {
        const std::int64_t size = std::min(kBlock, count - begin);
        const auto from = hn::Set(d, maximum);
        Map(weights, size, [from](Vec<A> v) HWY_ATTR { return Exp<true>(hn::Sub(v, from)); }, x + begin);
        sum += Sum(size, [&weights](std::int64_t at) HWY_ATTR { return static_cast<double>(weights[at]); });
    }
    return {maximum, sum};
}

template <class A>
void Softmax(A* x, std::int64_t count, const SoftmaxMoments<A>& moments, double factor) {
    const Tag<A> d;
    const auto from = hn::Set(d, moments.maximum);
    const auto share = hn::Set(d, static_cast<A>(factor / moments.sum));
    Map(
        x, count, [from, share](Vec<A> v) HWY_ATTR { return hn::Mul(Exp<true>(hn::Sub(v, from)), share); },
        static_cast<const A*>(x));
}

template <class A>
void AddTo(A* HWY_RESTRICT a, const A* HWY_RESTRICT b, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        a[i] += b[i];
    }
}

template <class A>
void ScaleBy(A* x, std::int64_t count, double factor) {
    for (std::int64_t i = 0; i < count; ++i) {
        x[i] = static_cast<A>(static_cast<double>(x[i]) * factor);
    }
}

template <class A>
void Drop(A* y, const A* x, const std::uint8_t* HWY_RESTRICT keep, std::int64_t count, A scale) {
    const auto run = [=](A* HWY_RESTRICT to, const auto& from) HWY_ATTR {
        for (std::int64_t i = 0; i < count; ++i) {
            to[i] = keep[i] != 0 ? from(to, i) * scale : A(0);
        }
    };
    // What may be one array the compiler would not turn into vectors.
    if (y == x) {
        run(y, [](const A* to, std::int64_t i) HWY_ATTR { return to[i]; });
    } else {
        run(y, [x](const A*, std::int64_t i) HWY_ATTR { return x[i]; });
    }
}

template <class A>
double SumOfSquares(const A* x, std::int64_t count) {
    return Sum(count, [x](std::int64_t i) HWY_ATTR { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
}

template <class A>
void AdamW(A* parameter, A* first, A* second, const A* gradient, std::int64_t count, const AdamWStep<A>& step) {
    const Tag<A> d;
    const auto toward = hn::Set(d, step.one_minus_beta1);
    const auto keep = hn::Set(d, step.beta2);
    const auto take = hn::Set(d, step.one_minus_beta2);
    const auto shrink = hn::Set(d, step.shrink);
    const auto size = hn::Set(d, step.step_size);
    const auto correction = hn::Set(d, step.root_correction);
    const auto eps = hn::Set(d, step.eps);
    // Products and sums round apart, in PyTorch's order.
    const A* const g = gradient;
    Map(
        first, count, [=](Vec<A> m, Vec<A> x) HWY_ATTR { return hn::Add(m, hn::Mul(toward, hn::Sub(x, m))); },
        static_cast<const A*>(first), g);
    Map(
        second, count,
        [=](Vec<A> v, Vec<A> x) HWY_ATTR { return hn::Add(hn::Mul(keep, v), hn::Mul(hn::Mul(take, x), x)); },
        static_cast<const A*>(second), g);
    Map(
        parameter, count,
        [=](Vec<A> p, Vec<A> m, Vec<A> v) HWY_ATTR {
            const auto root = hn::Add(hn::Div(hn::Sqrt(v), correction), eps);
            return hn::Sub(hn::Mul(p, shrink), hn::Mul(size, hn::Div(m, root)));
        },
        static_cast<const A*>(parameter), static_cast<const A*>(first), static_cast<const A*>(second));
}

template <class A>
constexpr Layers<A> MakeLayers() {
    return {.gelu_tanh = Gelu<A, GeluTanh<A>>,
            .gelu_erf = Gelu<A, GeluErf<A>>,
            .gelu_tanh_backward = GeluBackward<A, GeluTanh<A>>,
            .gelu_erf_backward = GeluBackward<A, GeluErf<A>>,
            .layer_norm = LayerNorm<A>,
            .layer_norm_backward = LayerNormBackward<A>,
            .softmax_moments = MomentsOfSoftmax<A>,
            .softmax = Softmax<A>,
            .add = AddTo<A>,
            .scale = ScaleBy<A>,
            .drop = Drop<A>,
            .sum_of_squares = SumOfSquares<A>,
            .adamw = AdamW<A>};
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
