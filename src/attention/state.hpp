// The running softmax of a row, and how two results over different keys become one.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention/tile.hpp"
#include "core/exp.hpp"

namespace qkv::detail {

/// Softmax over the keys seen so far: weights exp(score − max) and their sum (Milakov & Gimelshein 2018). A row that
/// has seen none has max −∞ and sum 0.
template <class A>
struct RowState {
    A max = kMinusInfinity<A>;
    A sum = A(0);

    /// log Σ exp(score)
    [[nodiscard]] A lse() const { return sum == A(0) ? kMinusInfinity<A> : max + std::log(sum); }
};

/// What to subtract from scores: a row of nothing but −∞ must not become −∞ − −∞.
template <class A>
[[nodiscard]] A subtrahend(A max) {
    return max == kMinusInfinity<A> ? A(0) : max;
}

/// The largest of kKeyTile values, NaN left aside; −∞ when there is none.
template <class A>
[[nodiscard]] A largest(const A* values) {
    A lane[8];
    std::fill_n(lane, 8, kMinusInfinity<A>);
    for (std::int64_t c = 0; c < kKeyTile; c += 8) {
        for (std::int64_t l = 0; l < 8; ++l) {
            lane[l] = values[c + l] > lane[l] ? values[c + l] : lane[l];
        }
    }
    return *std::max_element(lane, lane + 8);
}

/// Takes kKeyTile more scores into `state`: weights ← exp(score − new max). Returns what sums over the old maximum must
/// be multiplied by. A NaN score makes the sum NaN.
template <class A>
[[nodiscard]] A take_scores(RowState<A>& state, const A* scores, A* weights) {
    const A tile_max = largest(scores);
    const A max = tile_max > state.max ? tile_max : state.max;
    const A base = subtrahend(max);
    for (std::int64_t c = 0; c < kKeyTile; ++c) {
        weights[c] = exp_fast(scores[c] - base);
    }
    const A shrink = max == state.max ? A(1) : exp_fast(state.max - base);
    state.sum = state.sum * shrink + tile_sum(weights);
    state.max = max;
    return shrink;
}

/// The sink takes part in the softmax as one more score without a value. Returns what the context shrinks by.
template <class A>
[[nodiscard]] A take_sink(RowState<A>& state, A sink) {
    if (sink == kMinusInfinity<A>) {
        return A(1);
    }
    const A max = sink > state.max ? sink : state.max;
    const A shrink = exp_fast(state.max - max);
    state.sum = state.sum * shrink + exp_fast(sink - max);
    state.max = max;
    return shrink;
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
    const A max = part.max > state.max ? part.max : state.max;
    const A base = subtrahend(max);
    const Shares<A> shares{max == state.max ? A(1) : exp_fast(state.max - base),
                           max == part.max ? A(1) : exp_fast(part.max - base)};
    state.sum = state.sum * shares.mine + part.sum * shares.other;
    state.max = max;
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
