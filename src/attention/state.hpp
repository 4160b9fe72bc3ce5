// The running softmax of a row, and how two results over different keys become one.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention/tile.hpp"
#include "core/exp.hpp"

namespace qkv::detail {

/// Softmax over the keys seen so far: Σ exp(score − reference). A row that has seen none has reference −∞ and sum 0.
template <class A>
struct RowState {
    A reference = kMinusInfinity<A>;
    A sum = A(0);

    /// log Σ exp(score)
    [[nodiscard]] A lse() const { return sum == A(0) ? kMinusInfinity<A> : reference + std::log(sum); }
};

/// What to subtract from scores: a row of nothing but −∞ must not become −∞ − −∞.
template <class A>
[[nodiscard]] A subtrahend(A reference) {
    return reference == kMinusInfinity<A> ? A(0) : reference;
}

/// The interleaved sums of a row as one: a tree.
template <class A>
[[nodiscard]] A total(const A* sums) {
    A lanes[kernels::kLanes];
    std::copy_n(sums, kernels::kLanes, lanes);
    for (std::int64_t half = kernels::kLanes / 2; half > 0; half /= 2) {
        for (std::int64_t l = 0; l < half; ++l) {
            lanes[l] += lanes[l + half];
        }
    }
    return lanes[0];
}

/// Two lse become one, and the factors that their contexts get: exp(a − lse) and exp(b − lse), 0 for −∞.
template <class A>
struct Merge {
    A lse;
    A factor_a;
    A factor_b;
};

template <class A>
[[nodiscard]] Merge<A> merge_lse(A a, A b) {
    if (b == kMinusInfinity<A>) {
        return {a, A(1), A(0)};
    }
    if (a == kMinusInfinity<A>) {
        return {b, A(0), A(1)};
    }
    const A max = a > b ? a : b;
    const A weight_a = exp_fast(a - max);
    const A weight_b = exp_fast(b - max);
    const A sum = weight_a + weight_b;
    return {max + std::log(sum), weight_a / sum, weight_b / sum};
}

}  // namespace qkv::detail
