// What docs/numerics.md promises: empty rows, unused memory, extras, order of operations, extreme scores.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/oracle.hpp"
#include "support/small.hpp"

namespace qkv {
namespace {

using support::same_bits;
using support::same_results;
using support::Small;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const support::Sizes kSizes{
    .batch = 2, .heads = 4, .kv_heads = 2, .queries = 70, .keys = 80, .head_dim = 8, .value_dim = 6};

template <class T>
bool all_zero_bits(const std::vector<T>& values) {
    const std::vector<T> zeros(values.size());
    return same_bits(values, zeros);
}

template <class T>
void expect_empty(const AttentionOptions& options, const char* what) {
    Small<T> p(kSizes);
    p.forward(options);
    p.backward(options);
    EXPECT_TRUE(all_zero_bits(p.out)) << what;
    EXPECT_TRUE(all_zero_bits(p.dq) && all_zero_bits(p.dk) && all_zero_bits(p.dv)) << what;
    EXPECT_TRUE(std::ranges::all_of(p.lse, [](auto lse) { return std::isinf(lse) && lse < 0; })) << what;
}

template <class T>
class EmptyRows : public testing::Test {};
using StorageTypes = testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(EmptyRows, StorageTypes);

TYPED_TEST(EmptyRows, GiveZeroAndMinusInfinityUnderEveryMask) {
    AttentionOptions options;
    options.mask = Mask::causal(-70);
    expect_empty<TypeParam>(options, "causal");
    options.mask = Mask::window(std::nullopt, 0, Align::top_left) & Mask::window(0, std::nullopt, Align::bottom_right);
    expect_empty<TypeParam>(options, "bands that do not meet");
    const std::int64_t none[] = {0, 0};
    options.mask = Mask::key_end(none);
    expect_empty<TypeParam>(options, "key_end");
    bool denied = false;
    options.mask = Mask::allowed(view(&denied, {1, 1, 1, 1}));
    expect_empty<TypeParam>(options, "allowed");
    float minus_infinity = -kInfinity;
    options.mask = Mask::bias(view(&minus_infinity, {1, 1, 1, 1}));
    expect_empty<TypeParam>(options, "bias");
    const std::int64_t starts[] = {0, 0};
    options.mask = Mask::blocks({128, 16, 1, 1, starts, {}});
    expect_empty<TypeParam>(options, "blocks");
}

TEST(AttentionConventions, EmptyRowsAmongOthersTakeNoPart) {
    // Queries 0..9 see nothing. What they and their d_out hold must not reach dk and dv.
    AttentionOptions options;
    options.mask = Mask::causal(-10);
    Small<float> p(kSizes);
    Small<float> poisoned(kSizes);
    for (std::int64_t row = 0; row < kSizes.batch * kSizes.heads; ++row) {
        std::fill_n(poisoned.q.begin() + row * 70 * 8, 10 * 8, std::nanf(""));
        std::fill_n(poisoned.d_out.begin() + row * 70 * 6, 10 * 6, std::nanf(""));
    }
    for (auto* problem : {&p, &poisoned}) {
        problem->forward(options);
        problem->backward(options);
    }
    EXPECT_TRUE(same_results(p, poisoned));
    EXPECT_EQ(p.lse[9], -kInfinity);
    EXPECT_NE(p.lse[10], -kInfinity);
}

TEST(AttentionConventions, AnEmptyRowWithASinkHasTheSinkAsLse) {
    std::vector<float> sinks{1, 2, 3, 4};
    AttentionOptions options;
    options.mask = Mask::causal(-70);
    options.sinks = per_head(sinks.data(), 4);
    Small<float> p(kSizes);
    p.forward(options);
    EXPECT_TRUE(all_zero_bits(p.out));
    EXPECT_EQ(p.lse[0], 1.0F);
    AttentionExtras extras;
    extras.lse = p.lse_view();
    extras.lse_counts_sinks = false;
    attention(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options, extras);
    EXPECT_EQ(p.lse[0], -kInfinity);
}

/// Every mask that leaves some keys to some queries only: those keys are NaN for the others.
TEST(AttentionConventions, MaskedMemoryChangesNoBit) {
    std::vector<char> storage(70 * 80, 1);
    auto* allowed = reinterpret_cast<bool*>(storage.data());
    std::vector<float> bias(70 * 80, 0.0F);
    for (std::size_t i = 0; i < 70; ++i) {
        for (std::size_t j = 40; j < 80; ++j) {
            allowed[i * 80 + j] = i >= 35;
            bias[i * 80 + j] = i >= 35 ? 0.0F : -kInfinity;
        }
    }
    const std::int64_t starts[] = {0, 2, 4, 8};
    const std::int64_t blocks[] = {0, 1, 0, 1, 0, 1, 2, 3};
    const Mask masks[] = {Mask::causal(Align::top_left), Mask::window(4, 4, Align::top_left),
                          Mask::allowed(view(allowed, {1, 1, 70, 80})), Mask::bias(view(bias.data(), {1, 1, 70, 80})),
                          Mask::blocks({32, 20, 1, 1, starts, blocks})};
    for (std::size_t m = 0; m < std::size(masks); ++m) {
        AttentionOptions options;
        options.mask = masks[m];
        options.dropout.p = 0.3;
        Small<float> p(kSizes);
        Small<float> poisoned(kSizes);
        // Keys from 60 on are NaN or infinite; queries before 35 must come out alike, and their part of dq.
        for (std::int64_t head = 0; head < kSizes.batch * kSizes.kv_heads; ++head) {
            std::fill_n(poisoned.k.begin() + (head * 80 + 60) * 8, 20 * 8, std::nanf(""));
            std::fill_n(poisoned.v.begin() + (head * 80 + 60) * 6, 20 * 6, head % 2 == 0 ? std::nanf("") : kInfinity);
        }
        for (auto* problem : {&p, &poisoned}) {
            problem->forward(options);
            problem->backward(options);
        }
        const auto at = [](std::int64_t head, std::int64_t width) {
            return static_cast<std::size_t>(head * 70 * width);
        };
        EXPECT_FALSE(same_bits(p.out, poisoned.out)) << "the poison reaches nobody";
        for (std::int64_t head = 0; head < kSizes.batch * kSizes.heads; ++head) {
            EXPECT_TRUE(same_bits(&p.out[at(head, 6)], &poisoned.out[at(head, 6)], 35 * 6)) << m;
            EXPECT_TRUE(same_bits(&p.dq[at(head, 8)], &poisoned.dq[at(head, 8)], 35 * 8)) << m;
        }
    }
}

TEST(AttentionConventions, AskingForMoreChangesNoBit) {
    AttentionOptions options;
    options.mask = Mask::causal(Align::bottom_right);
    options.dropout.p = 0.5;
    Small<float> p(kSizes);
    attention(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options);
    const std::vector<float> alone = p.out;
    std::vector<float> weights(2 * 4 * 70 * 80), scores(weights.size());
    for (const ScorePoint point : {ScorePoint::scaled, ScorePoint::capped, ScorePoint::masked, ScorePoint::weights}) {
        AttentionExtras extras;
        extras.lse = p.lse_view();
        extras.weights = view(weights.data(), p.score_shape());
        extras.scores = view(scores.data(), p.score_shape());
        extras.scores_at = point;
        std::ranges::fill(p.out, -1.0F);
        attention(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options, extras);
        EXPECT_TRUE(same_bits(alone, p.out));
        if (point == ScorePoint::weights) {
            EXPECT_TRUE(same_bits(weights, scores));
        }
    }
    // Before dropout: rows add up to 1.
    EXPECT_NEAR(std::accumulate(weights.begin(), weights.begin() + 80, 0.0), 1.0, 1e-6);
}

TEST(AttentionConventions, ScoresAreShownAtTheFourPoints) {
    const support::Sizes sizes{
        .batch = 1, .heads = 1, .kv_heads = 1, .queries = 2, .keys = 3, .head_dim = 1, .value_dim = 1};
    Small<float> p(sizes);
    p.q = {2, 3};
    p.k = {1, -1, 4};
    std::vector<float> bias{0, 0.5F, 0};
    AttentionOptions options;
    options.scale = 0.5;
    options.softcap = 2.0;
    options.mask = Mask::causal(Align::top_left) & Mask::bias(view(bias.data(), {1, 1, 1, 3}));
    const auto shown = [&](ScorePoint point) {
        std::vector<float> scores(6, 7.0F);
        AttentionExtras extras;
        extras.scores = view(scores.data(), {1, 1, 2, 3});
        extras.scores_at = point;
        attention(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options, extras);
        return scores;
    };
    EXPECT_EQ(shown(ScorePoint::scaled), (std::vector<float>{1, -1, 4, 1.5F, -1.5F, 6}));
    EXPECT_NEAR(shown(ScorePoint::capped)[2], 2.0 * std::tanh(2.0), 1e-6);
    const std::vector<float> masked = shown(ScorePoint::masked);
    EXPECT_EQ(masked[1], -kInfinity);
    EXPECT_NEAR(masked[4], 2.0 * std::tanh(-0.75) + 0.5, 1e-6);  // softcap first, then the bias
    EXPECT_EQ(shown(ScorePoint::weights)[0], 1.0F);
}

TEST(AttentionConventions, WhatABiasMasksStaysMaskedWhateverComesAfterIt) {
    for (const float slope : {std::nanf(""), kInfinity, -3e38F}) {
        for (const std::int64_t queries : {2, 40}) {
            Small<float> p({.batch = 1,
                            .heads = 1,
                            .kv_heads = 1,
                            .queries = queries,
                            .keys = queries,
                            .head_dim = 3,
                            .value_dim = 3});
            std::vector<float> bias(static_cast<std::size_t>(queries * queries), 0.0F);
            std::fill_n(bias.begin(), queries, -kInfinity);
            std::vector<float> lse(static_cast<std::size_t>(queries));
            AttentionOptions options;
            options.mask = Mask::bias(view(bias.data(), {1, 1, queries, queries})) &
                           Mask::alibi(view(&slope, {1, 1, 1, 1}), Align::top_left);
            AttentionExtras extras;
            extras.lse = view(lse.data(), {1, 1, queries, 1});
            attention(p.q_view(), p.k_view(), p.v_view(), p.out_view(), options, extras);
            EXPECT_EQ(lse[0], -kInfinity) << slope << ' ' << queries;
            EXPECT_EQ(p.out[0], 0.0F) << slope << ' ' << queries;
        }
    }
}

TEST(AttentionConventions, SizesMayBeZero) {
    for (int zeros = 1; zeros < 64; ++zeros) {
        const auto size = [zeros](int bit, std::int64_t otherwise) { return (zeros >> bit & 1) != 0 ? 0 : otherwise; };
        Small<float> p({.batch = size(0, 2),
                        .heads = size(1, 2),
                        .kv_heads = size(1, 1),
                        .queries = size(2, 3),
                        .keys = size(3, 4),
                        .head_dim = size(4, 5),
                        .value_dim = size(5, 3)});
        ASSERT_NO_THROW(p.forward()) << zeros;
        ASSERT_NO_THROW(p.backward()) << zeros;
        if (zeros == 8) {
            EXPECT_TRUE(all_zero_bits(p.out) && all_zero_bits(p.dq));
            EXPECT_EQ(p.lse[0], -kInfinity);
        }
        if (zeros == 16) {  // no head_dim: the mean of the values
            EXPECT_NEAR(p.out[0], (p.v[0] + p.v[3] + p.v[6] + p.v[9]) / 4, 1e-6);
        }
    }
}

// PyTorch issue 127055: -inf above the diagonal and more than 10 below it masks whole blocks of keys of a row.
template <class T>
void check_band_of_bias() {
    const support::Sizes sizes{
        .batch = 1, .heads = 1, .kv_heads = 1, .queries = 600, .keys = 600, .head_dim = 4, .value_dim = 4};
    std::vector<float> bias(600 * 600);
    for (std::int64_t i = 0; i < 600; ++i) {
        for (std::int64_t j = 0; j < 600; ++j) {
            bias[static_cast<std::size_t>(i * 600 + j)] = j > i || j < i - 10 ? -kInfinity : 0.0F;
        }
    }
    Small<T> by_bias(sizes);
    AttentionOptions options;
    options.mask = Mask::bias(view(bias.data(), {1, 1, 600, 600}));
    by_bias.forward(options);
    by_bias.backward(options);
    Small<T> by_window(sizes);
    options.mask = Mask::window(10, 0, Align::top_left);
    by_window.forward(options);
    by_window.backward(options);
    EXPECT_TRUE(same_results(by_bias, by_window)) << "skipped is not the same as masked";
    EXPECT_TRUE(std::ranges::all_of(by_bias.dk, [](T x) { return std::isfinite(static_cast<float>(x)); }));
}

TEST(AttentionConventions, ABandOfBiasMasksWholeBlocks) {
    check_band_of_bias<float>();
    check_band_of_bias<BFloat16>();
    check_band_of_bias<Float16>();
}

/// Scores near the largest float, where 1 / ln 2 of one is none.
TEST(AttentionConventions, HugeScoresAreNoSpecialCase) {
    const auto check = [](auto zero) {
        Small<decltype(zero)> p(
            {.batch = 1, .heads = 1, .kv_heads = 1, .queries = 3, .keys = 4, .head_dim = 1, .value_dim = 1});
        for (const float sign : {1.0F, -1.0F}) {
            std::ranges::fill(p.q, decltype(zero)(1.6e19F));
            std::ranges::fill(p.k, decltype(zero)(sign * 1.6e19F));
            for (std::size_t key = 0; key < 4; ++key) {
                p.v[key] = decltype(zero)(static_cast<float>(key));
            }
            AttentionOptions options;
            options.scale = 1.0;
            p.forward(options);
            for (std::size_t row = 0; row < 3; ++row) {
                EXPECT_EQ(static_cast<float>(p.out[row]), 1.5F);
                EXPECT_NEAR(p.lse[row], sign * 2.56e38F, 0.02e38F);
            }
        }
    };
    check(0.0F);
    check(BFloat16(0.0F));
}

// Ranges computed from a band against the same band spelled out: at the edges of tiles, one pair decides over a tile.
TEST(AttentionConventions, ABandSkipsNoPairThatItAllows) {
    const support::Sizes sizes{
        .batch = 1, .heads = 1, .kv_heads = 1, .queries = 130, .keys = 130, .head_dim = 2, .value_dim = 2};
    for (const std::int64_t left : {0, 1, 2, 62, 63, 64, 65, 66, 127, 128}) {
        for (const std::int64_t right : {0, 1, 63, 64, 65}) {
            std::vector<char> storage(130 * 130);
            for (std::int64_t i = 0; i < 130; ++i) {
                for (std::int64_t j = 0; j < 130; ++j) {
                    storage[static_cast<std::size_t>(i * 130 + j)] = static_cast<char>(j >= i - left && j <= i + right);
                }
            }
            Small<float> computed(sizes);
            Small<float> spelled_out(sizes);
            AttentionOptions options;
            options.mask = Mask::window(left, right, Align::top_left);
            computed.forward(options);
            computed.backward(options);
            options.mask = Mask::allowed(view(reinterpret_cast<bool*>(storage.data()), {1, 1, 130, 130}));
            spelled_out.forward(options);
            spelled_out.backward(options);
            EXPECT_TRUE(same_results(computed, spelled_out)) << left << ' ' << right;
        }
    }
}

TEST(AttentionConventions, HalfInputsTimes100DoNotOverflow) {
    const support::Sizes sizes{
        .batch = 1, .heads = 2, .kv_heads = 1, .queries = 40, .keys = 50, .head_dim = 64, .value_dim = 16};
    Small<Float16> p(sizes, 5, 100.0);
    std::ranges::fill(p.v, Float16(6e4F));
    AttentionOptions options;
    options.scale = 1.0;
    p.forward(options);
    for (const Float16 value : p.out) {
        ASSERT_EQ(static_cast<float>(value), static_cast<float>(Float16(6e4F)));
    }
    EXPECT_GT(*std::ranges::max_element(p.lse), 1e4F);
    p.backward(options);
    EXPECT_TRUE(std::ranges::all_of(p.dv, [](Float16 x) { return std::isfinite(static_cast<float>(x)); }));
}

TEST(AttentionConventions, HeadsShareKeysInOrder) {
    const support::Sizes sizes{
        .batch = 1, .heads = 6, .kv_heads = 3, .queries = 2, .keys = 3, .head_dim = 2, .value_dim = 1};
    Small<float> p(sizes);
    p.v = {1, 1, 1, 2, 2, 2, 3, 3, 3};
    p.forward();
    for (std::size_t head = 0; head < 6; ++head) {
        const std::size_t kv_head = head / 2;
        EXPECT_NEAR(p.out[head * 2], static_cast<float>(1 + kv_head), 1e-6);
    }
}

TEST(AttentionConventions, DropoutKeepsTheSharePromised) {
    // Values are the identity, so out shows the dropped weights, and dv their transpose.
    const support::Sizes sizes{
        .batch = 1, .heads = 1, .kv_heads = 1, .queries = 300, .keys = 100, .head_dim = 1, .value_dim = 100};
    Small<float> p(sizes);
    std::ranges::fill(p.q, 0.0F);
    std::ranges::fill(p.v, 0.0F);
    for (std::size_t j = 0; j < 100; ++j) {
        p.v[j * 100 + j] = 1.0F;
    }
    AttentionOptions options;
    options.dropout = {.p = 0.3, .seed = 9, .keep = std::nullopt, .sequence_ids = {}};
    p.forward(options);
    const auto dropped = static_cast<double>(std::ranges::count(p.out, 0.0F));
    const double sigma = std::sqrt(30000 * 0.3 * 0.7);
    EXPECT_NEAR(dropped, 9000, 4 * sigma);
    EXPECT_NEAR(*std::ranges::max_element(p.out), 0.01 / 0.7, 1e-6);
    // dv of key j with d_out = 1 is the sum of its kept weights: the same mask as forward's.
    std::ranges::fill(p.d_out, 1.0F);
    p.backward(options);
    for (std::size_t j = 0; j < 100; ++j) {
        double kept = 0;
        for (std::size_t i = 0; i < 300; ++i) {
            kept += static_cast<double>(p.out[i * 100 + j]);
        }
        ASSERT_NEAR(p.dv[j * 100], kept, 1e-5);
    }
}

// A call inside a call sets up, and gives back, what the kernels of the outer one still need (AMX's tiles).
/// Whoever throws in the middle of a chain leaves nobody waiting.
TEST(ScoreFunctions, MayThrow) {
    Small<float> p({.batch = 1, .heads = 2, .kv_heads = 1, .queries = 400, .keys = 300, .head_dim = 8, .value_dim = 8});
    AttentionOptions options;
    options.score_function.gradient = [](const void*, const ScoreTile&, const ScoreTile&) {};
    options.score_function.apply = [](const void*, const ScoreTile&) {};
    p.forward(options);
    options.score_function.gradient = [](const void*, const ScoreTile& scores, const ScoreTile&) {
        if (scores.query == 128 && scores.key == 64) {
            throw std::runtime_error("enough");
        }
    };
    const Runtime sequential(3, [](std::int64_t tasks, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t task = 0; task < tasks; ++task) {
            body(task);
        }
    });
    EXPECT_THROW(p.backward(options, sequential), std::runtime_error);
    EXPECT_THROW(p.backward(options, Runtime(3)), std::runtime_error);
}

TEST(ScoreFunctions, MayCallAttentionThemselves) {
    const support::Sizes sizes{
        .batch = 1, .heads = 1, .kv_heads = 1, .queries = 128, .keys = 128, .head_dim = 64, .value_dim = 64};
    Small<BFloat16> plain(sizes);
    Small<BFloat16> nested(sizes);
    AttentionOptions options;
    options.score_function.gradient = [](const void*, const ScoreTile&, const ScoreTile&) {};
    options.score_function.apply = [](const void*, const ScoreTile&) {};
    plain.forward(options);
    plain.backward(options);
    options.score_function.apply = [](const void*, const ScoreTile&) {
        Small<BFloat16> inner(
            {.batch = 1, .heads = 1, .kv_heads = 1, .queries = 64, .keys = 64, .head_dim = 64, .value_dim = 64});
        inner.forward();
    };
    nested.forward(options);
    nested.backward(options);
    EXPECT_TRUE(same_results(nested, plain));
}

}  // namespace
}  // namespace qkv
