// A sequence spread over several calls, and put together again.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/oracle.hpp"
#include "support/small.hpp"

namespace qkv {
namespace {

using support::Small;

constexpr std::int64_t kQueries = 50, kKeys = 90, kDim = 8;
constexpr double kTolerance = 1e-12;

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = 0;
    for (std::size_t at = 0; at < a.size(); ++at) {
        largest = std::max(largest, a[at] == b[at] ? 0.0 : std::fabs(a[at] - b[at]));
    }
    return largest;
}

/// Keys [begin, end) of the whole problem, as a call of its own with global offsets.
struct Part {
    Part(Small<double>& whole, std::int64_t begin, std::int64_t end, const AttentionOptions& shared)
        : k(view(whole.k.data() + begin * kDim, {1, 2, end - begin, kDim}, {2 * kKeys * kDim, kKeys * kDim, kDim, 1})),
          v(view(whole.v.data() + begin * kDim, {1, 2, end - begin, kDim}, {2 * kKeys * kDim, kKeys * kDim, kDim, 1})),
          options(shared) {
        options.offsets.key = begin;
        options.offsets.keys = kKeys;
        options.offsets.queries = kQueries;
        options.sinks.reset();
    }
    ConstTensorView k, v;
    AttentionOptions options;
};

const support::Sizes kSizes{
    .batch = 1, .heads = 4, .kv_heads = 2, .queries = kQueries, .keys = kKeys, .head_dim = kDim, .value_dim = kDim};

AttentionOptions shared_options(std::vector<double>& slopes) {
    AttentionOptions options;
    options.mask = Mask::window(30, 0, Align::bottom_right) & Mask::alibi(per_head(slopes.data(), 4));
    options.dropout.p = 0.25;
    options.sinks = per_head(slopes.data(), 4);
    return options;
}

TEST(AttentionState, PartsOverKeysMergeToTheWhole) {
    std::vector<double> slopes{0.1, 0.2, 0.3, 0.4};
    const AttentionOptions options = shared_options(slopes);
    Small<double> whole(kSizes);
    whole.forward(options);
    whole.backward(options);

    Small<double> merged(kSizes);
    std::ranges::fill(merged.out, std::nan(""));  // what nobody has seen is not looked at
    std::ranges::fill(merged.lse, -INFINITY);
    const AttentionState state{merged.out_view(), merged.lse_view()};
    std::vector<double> dq(merged.dq.size()), dk(merged.dk.size()), dv(merged.dv.size()), dalibi(4);
    const std::int64_t cuts[] = {0, 17, 64, 90};
    for (std::size_t part = 0; part < 3; ++part) {
        const Part piece(whole, cuts[part], cuts[part + 1], options);
        Small<double> result(kSizes);
        AttentionExtras extras;
        extras.lse = result.lse_view();
        attention(whole.q_view(), piece.k, piece.v, result.out_view(), piece.options, extras);
        attention_merge(state, result.out_view(), result.lse_view());
    }
    attention_merge_sinks(state, per_head(slopes.data(), 4));
    EXPECT_LE(largest_difference(merged.out, whole.out), kTolerance);
    EXPECT_LE(largest_difference(merged.lse, whole.lse), kTolerance);

    // Backward in parts, from the merged lse and a delta of the caller's.
    std::vector<double> delta(merged.lse.size());
    for (std::size_t row = 0; row < delta.size(); ++row) {
        delta[row] = std::inner_product(merged.out.begin() + static_cast<std::ptrdiff_t>(row * kDim),
                                        merged.out.begin() + static_cast<std::ptrdiff_t>((row + 1) * kDim),
                                        whole.d_out.begin() + static_cast<std::ptrdiff_t>(row * kDim), 0.0);
    }
    std::vector<double> whole_dalibi(4);
    AttentionGradients whole_gradients;
    whole_gradients.dalibi = per_head(whole_dalibi.data(), 4);
    attention_backward(whole.q_view(), whole.k_view(), whole.v_view(), whole.d_out_view(), whole.saved(),
                       whole_gradients, options);
    for (std::size_t part = 0; part < 3; ++part) {
        const std::int64_t begin = cuts[part];
        const Part piece(whole, begin, cuts[part + 1], options);
        const Shape4 strides{2 * kKeys * kDim, kKeys * kDim, kDim, 1};
        Small<double> result(kSizes);
        std::vector<double> part_dalibi(4);
        AttentionGradients gradients;
        gradients.dq = result.dq_view();
        gradients.dk = view(dk.data() + begin * kDim, piece.k.shape, strides);
        gradients.dv = view(dv.data() + begin * kDim, piece.v.shape, strides);
        gradients.dalibi = per_head(part_dalibi.data(), 4);
        const AttentionSaved saved{.lse = merged.lse_view(),
                                   .lse_counts_sinks = true,
                                   .out = std::nullopt,
                                   .delta = per_row(delta.data(), 1, 4, kQueries)};
        attention_backward(whole.q_view(), piece.k, piece.v, whole.d_out_view(), saved, gradients, piece.options);
        std::ranges::transform(dq, result.dq, dq.begin(), std::plus<>());
        std::ranges::transform(dalibi, part_dalibi, dalibi.begin(), std::plus<>());
    }
    EXPECT_LE(largest_difference(dq, whole.dq), kTolerance);
    EXPECT_LE(largest_difference(dk, whole.dk), kTolerance);
    EXPECT_LE(largest_difference(dv, whole.dv), kTolerance);
    EXPECT_LE(largest_difference(dalibi, whole_dalibi), 1e-10);
}

TEST(AttentionState, HalfInputsGivePartialResultsInFloat) {
    const support::Sizes sizes{
        .batch = 1, .heads = 1, .kv_heads = 1, .queries = 3, .keys = 9, .head_dim = 4, .value_dim = 4};
    Small<BFloat16> p(sizes);
    std::vector<float> out(12), dq(12);
    AttentionExtras extras;
    extras.lse = p.lse_view();
    attention(p.q_view(), p.k_view(), p.v_view(), view(out.data(), {1, 1, 3, 4}), {}, extras);
    p.forward();
    for (std::size_t at = 0; at < out.size(); ++at) {
        EXPECT_EQ(BFloat16(out[at]).bits, p.out[at].bits);
    }
    AttentionSaved saved = p.saved();
    saved.out = view(out.data(), {1, 1, 3, 4});
    AttentionGradients gradients;
    gradients.dq = view(dq.data(), {1, 1, 3, 4});
    EXPECT_NO_THROW(attention_backward(p.q_view(), p.k_view(), p.v_view(), p.d_out_view(), saved, gradients));
}

TEST(AttentionState, HeadOffsetsCountForDropout) {
    const support::Sizes both{
        .batch = 1, .heads = 2, .kv_heads = 2, .queries = 6, .keys = 6, .head_dim = 4, .value_dim = 4};
    Small<float> whole(both);
    AttentionOptions options;
    options.dropout.p = 0.5;
    whole.forward(options);
    options.offsets.head = 1;
    std::vector<float> second(24);
    const Shape4 shape{1, 1, 6, 4};
    attention(view(whole.q.data() + 24, shape), view(whole.k.data() + 24, shape), view(whole.v.data() + 24, shape),
              view(second.data(), shape), options);
    EXPECT_TRUE(std::equal(second.begin(), second.end(), whole.out.begin() + 24));
}

/// p within 2^-33 of 1 drops every draw, the largest too; a weight that passed would be 10^10 times too large.
TEST(AttentionState, DropoutNearOneKeepsNothing) {
    constexpr std::int64_t kKey = 960837011;  // with seed 5, query 2: a draw of 2^32 - 1
    const std::uint32_t counter[4] = {kKey / 4, 2, 0, 0};
    ASSERT_EQ(oracle::philox(counter, 5, kKey % 4), 0xFFFFFFFFU);
    Small<float> p({.batch = 1, .heads = 1, .kv_heads = 1, .queries = 1, .keys = 1, .head_dim = 4, .value_dim = 4});
    AttentionOptions options;
    options.dropout.seed = 5;
    options.offsets.query = 2;
    options.offsets.key = kKey;
    options.dropout.p = 1 - 0x1p-32;  // the draw of 2^32 - 1 and no other is kept
    p.forward(options);
    EXPECT_EQ(p.out[0], p.v[0] * 0x1p32F);
    options.dropout.p = 1 - 0x1p-34;
    p.forward(options);
    EXPECT_EQ(p.out, std::vector<float>(4, 0.0F));
}

TEST(AttentionState, MergeHasAnIdentityAndKeepsInfinitiesOut) {
    std::vector<float> out{1, 2}, lse{3}, nothing{std::nanf(""), std::nanf("")}, minus{-INFINITY};
    const AttentionState state{view(out.data(), {1, 1, 1, 2}), per_row(lse.data(), 1, 1, 1)};
    attention_merge(state, view(nothing.data(), {1, 1, 1, 2}), per_row(minus.data(), 1, 1, 1));
    EXPECT_EQ(out, (std::vector<float>{1, 2}));
    EXPECT_EQ(lse[0], 3.0F);
    std::vector<float> far{7, 8}, larger{300};
    attention_merge(state, view(far.data(), {1, 1, 1, 2}), per_row(larger.data(), 1, 1, 1));
    EXPECT_EQ(out, far);
    EXPECT_EQ(lse[0], 300.0F);
    const AttentionState empty{view(nothing.data(), {1, 1, 1, 2}), per_row(minus.data(), 1, 1, 1)};
    std::vector<float> sink{1.5F};
    attention_merge_sinks(empty, per_head(sink.data(), 1));
    EXPECT_EQ(nothing, (std::vector<float>{0, 0}));
    EXPECT_EQ(minus[0], 1.5F);
    EXPECT_THROW(attention_merge(state, view(far.data(), {1, 1, 1, 1}), per_row(larger.data(), 1, 1, 1)), Error);
    EXPECT_THROW(attention_merge(state, state.out, per_row(larger.data(), 1, 1, 1)), Error);
}

TEST(AttentionState, OrderOfMergingMattersOnlyByRounding) {
    support::Random random(3);
    std::vector<std::vector<float>> outs, lses;
    for (int part = 0; part < 4; ++part) {
        outs.push_back({static_cast<float>(support::normal(random))});
        lses.push_back({static_cast<float>(3 * support::normal(random))});
    }
    std::vector<std::size_t> order{0, 1, 2, 3};
    std::vector<float> results;
    do {
        std::vector<float> out{0}, lse{-INFINITY};
        const AttentionState state{view(out.data(), {1, 1, 1, 1}), per_row(lse.data(), 1, 1, 1)};
        for (const std::size_t part : order) {
            attention_merge(state, view(outs[part].data(), {1, 1, 1, 1}), per_row(lses[part].data(), 1, 1, 1));
        }
        results.push_back(out[0]);
    } while (std::ranges::next_permutation(order).found);
    EXPECT_EQ(results.size(), 24U);
    const auto [low, high] = std::ranges::minmax(results);
    EXPECT_LE(high - low, 8 * 0x1p-24F * 2);
}

}  // namespace
}  // namespace qkv
