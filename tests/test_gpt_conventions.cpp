// What a Gpt promises besides PyTorch's numbers: generation over caches, the same bits for any threads and batch,
// states that go both ways, traces, memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qkv/nn.hpp"

namespace qkv::nn {
namespace {

using Ids = std::vector<std::int64_t>;

GptOptions small() {
    return {.vocab_size = 11, .context_length = 10, .emb_dim = 12, .num_heads = 3, .num_layers = 2, .qkv_bias = true};
}

template <class T = float>
BasicGpt<T> model_of(const GptOptions& options, std::uint64_t seed = 5) {
    Generator generator(seed);
    BasicGpt<T> model(options, generator);
    model.eval();
    return model;
}

Ids some_ids(std::int64_t count, std::int64_t vocab_size, std::uint64_t seed = 6) {
    Generator generator(seed);
    Ids ids;
    for (std::int64_t i = 0; i < count; ++i) {
        ids.push_back(static_cast<std::int64_t>(generator.random() % static_cast<std::uint32_t>(vocab_size)));
    }
    return ids;
}

template <class T>
std::vector<T> rows(const BasicTensor<T>& logits, std::int64_t first, std::int64_t count) {
    const std::int64_t width = logits.size(-1);
    return {logits.data() + first * width, logits.data() + (first + count) * width};
}

template <class T>
void expect_near(const std::vector<T>& found, const std::vector<T>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_NEAR(found[i], expected[i], 50 * std::numeric_limits<T>::epsilon()) << i;
    }
}

TEST(GptCached, EqualsTheWholeSequenceHoweverItIsCut) {
    const BasicGpt<double> model = model_of<double>(small());
    const Ids ids = some_ids(9, 11);
    const std::span<const std::int64_t> all(ids);
    const Tensor64 whole = model.forward(ids, 1);
    const auto by = [&](const std::vector<std::size_t>& cuts) {
        GptCache cache(model.options(), 1, DType::f64);
        std::vector<double> logits;
        std::size_t begin = 0;
        for (const std::size_t count : cuts) {
            const Tensor64 part = model.forward(all.subspan(begin, count), cache);
            EXPECT_EQ(part.shape(), (Shape{1, static_cast<std::int64_t>(count), 11}));
            logits.insert(logits.end(), part.values().begin(), part.values().end());
            begin += count;
            EXPECT_EQ(cache.size(0), begin);
        }
        return logits;
    };
    const std::vector<double> at_once = by({9});
    expect_near(at_once, rows(whole, 0, 9));
    EXPECT_EQ(by({1, 1, 1, 1, 1, 1, 1, 1, 1}), at_once);
    EXPECT_EQ(by({4, 3, 2}), at_once);
}

TEST(GptCached, ASequenceHasTheSameBitsInAnyBatch) {
    const Gpt model = model_of(small());
    const Ids ids = some_ids(24, 11);
    const std::span<const std::int64_t> all(ids);
    const Runtime runtime(2);
    GptCache together(model.options(), 3);
    const Tensor first = model.forward(all.first(12), together, {.runtime = &runtime});
    // Then as many as each likes: 2, none, 3.
    const std::vector<std::int64_t> ends{0, 2, 2, 5};
    const Tensor ragged = model.forward(all.subspan(12, 5), together, {.runtime = &runtime}, ends);
    EXPECT_EQ(ragged.shape(), (Shape{5, 11}));
    for (std::int64_t sequence = 0; sequence < 3; ++sequence) {
        const auto place = static_cast<std::size_t>(sequence);
        GptCache alone(model.options());
        const Tensor start = model.forward(all.subspan(4 * place, 4), alone);
        EXPECT_EQ(start.values().size(), 44U);
        EXPECT_EQ(rows(start, 0, 4), rows(first, 4 * sequence, 4));
        const std::int64_t count = ends[place + 1] - ends[place];
        EXPECT_EQ(together.size(sequence), 4 + count);
        if (count > 0) {
            const auto next = all.subspan(static_cast<std::size_t>(12 + ends[place]), static_cast<std::size_t>(count));
            EXPECT_EQ(rows(model.forward(next, alone), 0, count), rows(ragged, ends[place], count));
        }
    }
}

TEST(GptCached, TakesTokensBack) {
    const Gpt model = model_of(small());
    const Ids ids = some_ids(6, 11);
    const std::span<const std::int64_t> all(ids);
    GptCache cache(model.options());
    const Tensor first = model.forward(all, cache);
    cache.truncate(0, 2);
    EXPECT_EQ(rows(model.forward(all.subspan(2), cache), 0, 4), rows(first, 2, 4));
}

/// Large enough that every loop is cut into several tasks.
struct Large {
    GptOptions options{
        .vocab_size = 700, .context_length = 70, .emb_dim = 96, .num_heads = 4, .num_layers = 1, .dropout = 0.2};
    Ids ids = some_ids(4 * 70, 700);
    Ids targets = some_ids(4 * 70, 700, 8);
};

TEST(GptDeterminism, TheSameBitsForAnyNumberOfThreads) {
    const Large large;
    const auto gradients = [&large](std::int64_t threads) {
        Generator generator(5);
        Gpt model(large.options, generator);
        const Runtime runtime(threads);
        auto [loss, d_logits] = cross_entropy_backward(
            model.forward(large.ids, 4, {.generator = &generator, .runtime = &runtime}), large.targets, {}, runtime);
        model.backward(std::move(d_logits));
        return std::pair(loss, model.gradients());
    };
    const auto serial = gradients(1);
    EXPECT_EQ(serial.second.size(), 18U);
    for (const std::int64_t threads : {2, 3}) {
        EXPECT_EQ(gradients(threads), serial);
    }
}

TEST(GptDeterminism, ASequenceAloneHasTheBitsOfOneInABatch) {
    const Large large;
    const Gpt model = model_of(large.options);
    const std::span<const std::int64_t> all(large.ids);
    const Tensor together = model.forward(all, 4);
    for (std::int64_t sequence = 0; sequence < 4; ++sequence) {
        const Tensor alone = model.forward(all.subspan(static_cast<std::size_t>(sequence) * 70, 70), 1);
        EXPECT_EQ(rows(alone, 0, 70), rows(together, sequence * 70, 70));
    }
}

TEST(GptState, GoesBothWaysUnderTheNamesOfTheTeachingClass) {
    for (const bool tied : {false, true}) {
        GptOptions options = small();
        options.tie_weights = tied;
        const Gpt model = model_of(options);
        const StateDict<float> state = model.state_dict();
        for (const char* name :
             {"tok_emb.weight", "pos_emb.weight", "trf_blocks.0.att.W_query.weight", "trf_blocks.1.att.W_value.bias",
              "trf_blocks.1.att.out_proj.bias", "trf_blocks.0.att.mask", "trf_blocks.0.ff.layers.0.weight",
              "trf_blocks.1.ff.layers.2.bias", "trf_blocks.0.norm1.scale", "trf_blocks.1.norm2.shift",
              "final_norm.scale", "final_norm.shift", "out_head.weight"}) {
            EXPECT_TRUE(state.contains(name)) << name;
        }
        EXPECT_EQ(state.size(), 3 + 2 * (16 + 1) + 2U);
        EXPECT_EQ(state.at("out_head.weight") == state.at("tok_emb.weight"), tied);

        Gpt other = model_of(options, 99);
        EXPECT_NE(other.state_dict(), state);
        other.load_state_dict(state);
        EXPECT_EQ(other.state_dict(), state);
        const Ids ids = some_ids(7, 11);
        EXPECT_EQ(other.forward(ids, 1), model.forward(ids, 1));

        const GptOptions found = gpt_options_of(state, 3);
        EXPECT_EQ(found.vocab_size, 11);
        EXPECT_EQ(found.context_length, 10);
        EXPECT_EQ(found.emb_dim, 12);
        EXPECT_EQ(found.num_heads, 3);
        EXPECT_EQ(found.num_layers, 2);
        EXPECT_TRUE(found.qkv_bias);
        EXPECT_EQ(found.tie_weights, tied);
    }
}

TEST(GptState, TiedWeightsAreOneParameterThatLoadsUnderEitherName) {
    GptOptions options = small();
    options.tie_weights = true;
    Gpt model = model_of(options);
    EXPECT_EQ(std::ranges::count_if(model.parameters(),
                                    [](const auto& named) { return named.second->value.shape() == Shape{11, 12}; }),
              1);
    const StateDict<float> whole = model.state_dict();
    for (const char* absent : {"out_head.weight", "tok_emb.weight"}) {
        StateDict<float> state = whole;
        state.erase(absent);
        Gpt other = model_of(options, 99);
        other.load_state_dict(state);
        EXPECT_EQ(other.state_dict(), whole) << absent;
    }
}

TEST(GptModule, TrainsAndForgetsWithAllItsParts) {
    Generator generator(1);
    GptOptions options = small();
    options.dropout = 0.5;
    Gpt model(options, generator);
    const Ids ids = some_ids(6, 11);
    const auto logits = [&](std::uint64_t seed) {
        Generator dropout(seed);
        return std::as_const(model).forward(ids, 1, {.generator = &dropout});
    };
    EXPECT_NE(logits(1), logits(2));
    model.eval();
    EXPECT_EQ(logits(1), logits(2));
    std::size_t idle = 0;
    model.visit_children([&idle](const std::string&, BasicModule<float>& block) {
        block.visit_children(
            [&idle](const std::string&, const BasicModule<float>& part) { idle += part.training() ? 0U : 1U; });
    });
    EXPECT_EQ(idle, 4U);
}

TEST(GptModule, ATraceNamesEachBlocksAttention) {
    Gpt model = model_of(small());
    const Ids ids = some_ids(6, 11);
    Trace trace;
    const Tensor logits = model.forward(ids, 1, {.trace = &trace});
    EXPECT_EQ(logits, model.forward(ids, 1));
    for (const char* name : {"trf_blocks.0.att.weights", "trf_blocks.1.att.weights"}) {
        ASSERT_NE(trace.find(name), nullptr) << name;
        EXPECT_EQ(trace.find(name)->shape(), (Shape{1, 3, 6, 6}));
    }
    EXPECT_EQ(*trace.find("logits"), logits);
    EXPECT_EQ(trace.find("embeddings")->shape(), (Shape{1, 6, 12}));

    GptCache cache(model.options());
    Trace step;
    (void)model.forward(ids, cache, {.trace = &step});
    EXPECT_EQ(step.find("trf_blocks.1.att.weights")->shape(), (Shape{1, 3, 6, 6}));
}

TEST(CrossEntropyLoss, IsStableAndNaNWhereNothingCounts) {
    const Tensor logits({2, 3}, {1e30F, 0, -1e30F, 500, 500, 500});
    const Ids targets{0, 1};
    EXPECT_DOUBLE_EQ(cross_entropy(logits, targets), std::log(3.0) / 2);
    EXPECT_TRUE(std::isnan(cross_entropy(logits, Ids{-100, -100})));
    Tensor broken = logits;
    broken(0, 2) = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(cross_entropy(broken, targets)));
}

}  // namespace
}  // namespace qkv::nn
