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

/// The sink takes part in the softmax as one more score without a value: the state with it.
template <class A>
[[nodiscard]] RowState<A> with_sink(const RowState<A>& state, A sink) {
    if (sink == kMinusInfinity<A>) {
        return state;
    }
    const A reference = sink > state.reference ? sink : state.reference;
    return {reference, state.sum * exp_fast(state.reference - reference) + exp_fast(sink - reference)};
}

/// What two contexts, not yet divided by their sums, are multiplied by when they become one.
template <class A>
struct Shares {
    A mine;
    A other;
};

/// Two running softmaxes over different keys become one (Milakov & Gimelshein 2018, section 3.1).
template <class A>
[[nodiscard]] Shares<A> merge_states(RowState<A>& state, const RowState<A>& part) {
    if (part.sum == A(0)) {
        return {A(1), A(0)};
    }
    const A reference = part.reference > state.reference ? part.reference : state.reference;
    const A base = subtrahend(reference);
    const Shares<A> shares{reference == state.reference ? A(1) : exp_fast(state.reference - base),
                           reference == part.reference ? A(1) : exp_fast(part.reference - base)};
    state = {reference, state.sum * shares.mine + part.sum * shares.other};
    return shares;
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
