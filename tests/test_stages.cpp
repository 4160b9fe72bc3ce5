// The stages against the numbers that the teaching texts print, to their four digits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "qkv/nn.hpp"
#include "support/known_inputs.hpp"

namespace qkv::nn {
namespace {

using test::batch_of_two;
using test::journey;

// Printed with four digits, so half a unit of the fourth.
constexpr float kPrinted = 0.5e-4F + 1e-6F;

void expect_printed(std::span<const float> values, const std::vector<float>& printed) {
    EXPECT_THAT(values, testing::Pointwise(testing::FloatNear(kPrinted), printed));
}

TEST(SimpleSelfAttention, ScoresAndSumNormalisedWeightsOfJourney) {
    Trace trace;
    const SimpleSelfAttention simple;
    (void)simple.forward(journey(), {.trace = &trace});
    expect_printed(trace.find("scores")->row(1), {0.9544F, 1.4950F, 1.4754F, 0.8434F, 0.7070F, 1.0865F});
    expect_printed(trace.find("sum_normalised")->row(1), {0.1455F, 0.2278F, 0.2249F, 0.1285F, 0.1077F, 0.1656F});
}

TEST(SimpleSelfAttention, AllContexts) {
    const Tensor context = SimpleSelfAttention().forward(journey());
    expect_printed(context.values(), {.4421F, .5931F, .5790F, .4419F, .6515F, .5683F, .4431F, .6496F, .5671F, .4304F,
                                      .6298F, .5510F, .4671F, .5910F, .5266F, .4177F, .6503F, .5645F});
}

TEST(SimpleSelfAttention, OneQueryLoopsAndMatrixProductsAreEqual) {
    const Tensor x = journey();
    for (const Normalise how : {Normalise::sum, Normalise::naive_softmax, Normalise::softmax}) {
        const SimpleSelfAttention simple(how);
        const Tensor all = simple.forward(x);
        EXPECT_EQ(all, simple.forward_loops(x));
        for (std::int64_t query = 0; query < x.size(0); ++query) {
            EXPECT_TRUE(std::ranges::equal(all.row(query), simple.forward_query(x, query).values()));
        }
        EXPECT_EQ(simple.forward(batch_of_two(x)), batch_of_two(all));
    }
}

TEST(SimpleSelfAttention, HelloShinySun) {
    expect_printed(SimpleSelfAttention().forward(test::sun()).row(1), {.3990F, .3854F, .8610F});
}

TEST(SimpleSelfAttention, NaiveSoftmaxOverflowsAndStableDoesNot) {
    Tensor scores({3}, {954.4F, 1495.0F, 1475.4F});
    EXPECT_TRUE(std::isnan(normalised(scores, Normalise::naive_softmax)(0)));
    EXPECT_THAT(normalised(scores, Normalise::softmax).values(), testing::Each(testing::Le(1.0F)));
    scores = Tensor({2}, {-1000.0F, -1001.0F});
    EXPECT_TRUE(std::isnan(normalised(scores, Normalise::naive_softmax)(0)));  // 0 / 0
    EXPECT_NEAR(normalised(scores, Normalise::softmax)(0), 0.7311F, kPrinted);
}

TEST(SelfAttention, RawMatrices) {
    Generator generator(123);
    const SelfAttention self({.d_in = 3, .d_out = 2, .init = Init::uniform}, generator);
    const Tensor context = self.forward(journey());
    expect_printed(context.row(0), {.2996F, .8053F});
}

TEST(SelfAttention, LinearLayers) {
    Generator generator(789);
    const SelfAttention self({.d_in = 3, .d_out = 2}, generator);
    const Tensor context = self.forward(journey());
    expect_printed(context.row(0), {-.0739F, .0713F});
    expect_printed(context.row(5), {-.0754F, .0693F});
}

TEST(CausalAttention, BatchOfTwoEqualSequences) {
    Generator generator(123);
    const CausalAttention causal({.d_in = 3, .d_out = 2, .context_length = 6}, generator);
    const Tensor context = causal.forward(batch_of_two(journey()));
    ASSERT_EQ(context.shape(), (Shape{2, 6, 2}));
    const std::vector<float> printed{-.4519F, .2216F,  -.5874F, .0058F,  -.6300F, -.0632F,
                                     -.5675F, -.0843F, -.5526F, -.0981F, -.5299F, -.1081F};
    expect_printed(context.values().first(12), printed);
    expect_printed(context.values().last(12), printed);
}

TEST(CausalAttention, DropoutInTrainingOnly) {
    Generator generator(123);
    CausalAttention causal({.d_in = 3, .d_out = 2, .context_length = 6, .dropout = 0.5}, generator);
    const Tensor trained = causal.forward(batch_of_two(journey()), {.generator = &generator});
    expect_printed(trained.values().first(2), {-.9038F, .4432F});
    causal.eval();
    expect_printed(causal.forward(journey()).row(0), {-.4519F, .2216F});
    causal.train();
    EXPECT_THROW((void)causal.forward(journey()), Error);  // no generator to draw the mask from
}

TEST(CausalAttention, DropoutOneLeavesNothing) {
    Generator generator(123);
    const CausalAttention causal({.d_in = 3, .d_out = 2, .context_length = 6, .dropout = 1.0}, generator);
    EXPECT_THAT(causal.forward(journey(), {.generator = &generator}).values(), testing::Each(0.0F));
}

TEST(MultiHeadAttentionWrapper, TwoHeads) {
    Generator generator(123);
    const MultiHeadAttentionWrapper wrapper({.d_in = 3, .d_out = 2, .context_length = 6, .num_heads = 2}, generator);
    const Tensor context = wrapper.forward(batch_of_two(journey()));
    ASSERT_EQ(context.shape(), (Shape{2, 6, 4}));
    expect_printed(context.row(0), {-.4519F, .2216F, .4772F, .1063F});
}

TEST(MultiHeadAttention, OneProjectionSplit) {
    Generator generator(123);
    const MultiHeadAttention heads({.d_in = 3, .d_out = 2, .context_length = 6, .num_heads = 2}, generator);
    const Tensor output = heads.forward(batch_of_two(journey()));
    expect_printed(output.row(0), {.3190F, .4858F});
    expect_printed(output.row(5), {.2575F, .4028F});
}

TEST(Modules, TraceChangesNoBitAndABatchIsItsSequences) {
    Generator generator(7);
    const MultiHeadAttention heads({.d_in = 3, .d_out = 8, .context_length = 6, .num_heads = 4, .qkv_bias = true},
                                   generator);
    Trace trace;
    const Tensor alone = heads.forward(journey());
    EXPECT_EQ(alone, heads.forward(journey(), {.trace = &trace}));
    EXPECT_EQ(batch_of_two(alone), heads.forward(batch_of_two(journey())));
    EXPECT_EQ(trace.find("weights")->shape(), (Shape{4, 6, 6}));
    EXPECT_EQ(*trace.find("output"), alone);
}

TEST(Modules, MaskedValuesAreNeverMultiplied) {
    // A NaN in a later token must not reach an earlier one through 0 · NaN.
    Generator generator(7);
    const CausalAttention causal({.d_in = 3, .d_out = 4, .context_length = 6}, generator);
    const Tensor clean = causal.forward(journey());
    Tensor poisoned = journey();
    poisoned(5, 1) = std::numeric_limits<float>::quiet_NaN();
    const Tensor context = causal.forward(poisoned);
    EXPECT_TRUE(std::ranges::equal(clean.values().first(20), context.values().first(20)));
    EXPECT_TRUE(std::isnan(context(5, 0)));
}

TEST(CrossAttention, MasksSourceTokensAndEmptyRowsAreZero) {
    Generator generator(3);
    const CrossAttention cross({.d_query = 3, .d_source = 3, .d_out = 4, .num_heads = 2}, generator);
    Trace trace;
    const Tensor x = journey();
    (void)cross.forward(x, test::sun(), {.trace = &trace}, {true, false, true});
    EXPECT_EQ((*trace.find("weights"))(1, 4, 1), 0.0F);
    // What is masked might as well not be there.
    const Tensor short_source({2, 3}, {.34F, .22F, .54F, .29F, .54F, .93F});
    EXPECT_EQ(cross.forward(x, short_source), cross.forward(x, test::sun(), {}, {true, false, true}));
    Trace empty;
    (void)cross.forward(x, test::sun(), {.trace = &empty}, {false, false, false});
    EXPECT_THAT(empty.find("context")->values(), testing::Each(0.0F));
}

TEST(Modules, BadArgumentsAreNamed) {
    Generator generator(1);
    const auto message = [&](auto&& make) -> std::string {
        try {
            make();
        } catch (const Error& error) {
            return error.what();
        }
        return "nothing was thrown";
    };
    EXPECT_EQ(
        message([&] { MultiHeadAttention({.d_in = 3, .d_out = 8, .context_length = 6, .num_heads = 3}, generator); }),
        "d_out 8 does not divide by 3 heads; try 2 or 4");
    EXPECT_EQ(
        message([&] { CausalAttention({.d_in = 3, .d_out = 2, .context_length = 6, .dropout = 1.5}, generator); }),
        "dropout is 1.5; expected a probability from 0 to 1");
    EXPECT_EQ(message([&] {
                  const CausalAttention causal({.d_in = 3, .d_out = 2, .context_length = 4}, generator);
                  (void)causal.forward(journey());
              }),
              "6 tokens are more than the context_length of 4");
    EXPECT_EQ(message([&] {
                  const CausalAttention causal({.d_in = 4, .d_out = 2, .context_length = 6}, generator);
                  (void)causal.forward(journey());
              }),
              "input has shape [6, 3]; expected [tokens, 4] or [batch, tokens, 4]");
    EXPECT_EQ(message([&] { SelfAttention({.d_in = 0, .d_out = 2}, generator); }),
              "d_in is 0 and d_out 2; expected 1 or more");
}

}  // namespace
}  // namespace qkv::nn
