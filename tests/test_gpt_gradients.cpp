// backward of the parts of a GPT against central differences in float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "qkv/nn.hpp"

namespace qkv::nn {
namespace {

using Ids = std::vector<std::int64_t>;
using Loss = std::function<double()>;

Tensor64 drawn(const Shape& shape, std::uint64_t seed) {
    Generator generator(seed);
    Tensor64 values(shape);
    generator.uniform_(values.values(), -1.0, 1.0);
    return values;
}

double dot(const Tensor64& a, const Tensor64& b) {
    double sum = 0;
    for (std::int64_t i = 0; i < a.numel(); ++i) {
        sum += a.data()[i] * b.data()[i];
    }
    return sum;
}

/// `gradient` against (loss(x + h) − loss(x − h)) / 2h for each element of x.
void expect_slopes(const std::string& name, Tensor64& x, const Tensor64& gradient, const Loss& loss) {
    ASSERT_EQ(gradient.shape(), x.shape()) << name;
    constexpr double kStep = 1e-5;
    for (std::int64_t i = 0; i < x.numel(); ++i) {
        const double before = x.data()[i];
        x.data()[i] = before + kStep;
        const double above = loss();
        x.data()[i] = before - kStep;
        const double below = loss();
        x.data()[i] = before;
        const double slope = (above - below) / (2 * kStep);
        EXPECT_NEAR(gradient.data()[i], slope, 1e-8 * std::max(1.0, std::fabs(slope))) << name << ", element " << i;
    }
}

/// Every parameter that `module` visits has moved from where it starts, so that no scale is 1 and no shift 0.
template <class Visited>
void scatter(Visited& visited) {
    std::uint64_t seed = 100;
    visited([&seed](const std::string&, Parameter<double>& parameter) {
        const Tensor64 noise = drawn(parameter.value.shape(), ++seed);
        for (std::int64_t i = 0; i < noise.numel(); ++i) {
            parameter.value.data()[i] += noise.data()[i] / 2;
        }
    });
}

/// The slopes of all parameters that `visited` visits.
template <class Visited>
void expect_parameter_slopes(Visited& visited, const Loss& loss, std::size_t count) {
    std::size_t found = 0;
    visited([&](const std::string& name, Parameter<double>& parameter) {
        const Tensor64 gradient = parameter.gradient;
        expect_slopes(name, parameter.value, gradient, loss);
        ++found;
    });
    EXPECT_EQ(found, count);
}

using Visitor = BasicModule<double>::Visitor;

TEST(GptGradients, OfLayerNorm) {
    BasicLayerNorm<double> norm(6);
    const auto visit = [&norm](const Visitor& visitor) { norm.visit_parameters("norm", visitor); };
    scatter(visit);
    Tensor64 x = drawn({3, 2, 6}, 1);
    const Tensor64 d_y = drawn(x.shape(), 2);
    const Loss loss = [&] { return dot(norm.forward(x), d_y); };
    const Tensor64 d_x = norm.backward(x, d_y);
    expect_slopes("x", x, d_x, loss);
    expect_parameter_slopes(visit, loss, 2);
}

TEST(GptGradients, OfEmbeddingAddUpWhereAnIdComesTwice) {
    Generator generator(3);
    BasicEmbedding<double> embedding(5, 40, generator);
    const auto visit = [&embedding](const Visitor& visitor) { embedding.visit_parameters("emb", visitor); };
    const Ids ids{4, 0, 4, 2, 4};
    const Tensor64 d_y = drawn({5, 40}, 2);
    const Loss loss = [&] { return dot(embedding.forward(ids), d_y); };
    embedding.backward(ids, d_y);
    expect_parameter_slopes(visit, loss, 1);
}

TEST(GptGradients, OfGelu) {
    Tensor64 x = drawn({50}, 7);
    for (double& value : x.values()) {
        value *= 4;
    }
    const Tensor64 d_y = drawn(x.shape(), 8);
    for (const Gelu form : {Gelu::tanh, Gelu::erf}) {
        expect_slopes("x", x, gelu_backward(x, d_y, form), [&] { return dot(gelu(x, form), d_y); });
    }
}

TEST(GptGradients, OfFeedForward) {
    for (const Gelu form : {Gelu::tanh, Gelu::erf}) {
        Generator generator(4);
        BasicFeedForward<double> module(3, form, generator);
        const auto visit = [&module](const Visitor& visitor) { module.visit_parameters(visitor); };
        Tensor64 x = drawn({2, 2, 3}, 5);
        const Tensor64 d_y = drawn(x.shape(), 6);
        const Loss loss = [&] { return dot(std::as_const(module).forward(x), d_y); };
        (void)module.forward(x);
        const Tensor64 d_x = module.backward(d_y);
        expect_slopes("x", x, d_x, loss);
        expect_parameter_slopes(visit, loss, 4);
    }
}

TEST(GptGradients, OfTransformerBlock) {
    for (const double dropout : {0.0, 0.4}) {
        for (const bool batched : {true, false}) {
            Generator generator(9);
            BasicTransformerBlock<double> module({.emb_dim = 4,
                                                  .context_length = 5,
                                                  .num_heads = 2,
                                                  .dropout = dropout,
                                                  .qkv_bias = true,
                                                  .gelu = Gelu::erf},
                                                 generator);
            const auto visit = [&module](const Visitor& visitor) { module.visit_parameters(visitor); };
            scatter(visit);
            Tensor64 x = drawn(batched ? Shape{2, 4, 4} : Shape{4, 4}, 10);
            const Tensor64 d_y = drawn(x.shape(), 11);
            const Loss loss = [&] {
                Generator same(77);
                return dot(std::as_const(module).forward(x, {.generator = &same}), d_y);
            };
            Generator same(77);
            (void)module.forward(x, {.generator = &same});
            const Tensor64 d_x = module.backward(d_y);
            expect_slopes("x", x, d_x, loss);
            expect_parameter_slopes(visit, loss, 16);
        }
    }
}

TEST(GptGradients, OfCrossEntropyAndNoneWhereTheTargetIsIgnored) {
    Tensor64 logits = drawn({2, 3, 7}, 12);
    const Ids targets{3, -1, 6, 0, 0, -1};
    const CrossEntropyOptions options{.ignore_index = -1, .scale = 0.25};
    const auto [loss, d_logits] = cross_entropy_backward(logits, targets, options);
    EXPECT_EQ(loss, cross_entropy(logits, targets, options));
    expect_slopes("logits", logits, d_logits, [&] { return cross_entropy(logits, targets, options) / 4; });
    for (const std::int64_t row : {1, 5}) {
        EXPECT_TRUE(std::ranges::all_of(d_logits.row(row), [](double slope) { return slope == 0; }));
    }
}

TEST(GptGradients, OfTheWholeModel) {
    const Ids ids{1, 4, 4, 0, 3, 2, 1, 1};
    const Ids targets{4, 4, 0, -100, 2, 1, 1, 0};
    for (const bool tied : {false, true}) {
        for (const double dropout : {0.0, 0.3}) {
            Generator generator(13);
            BasicGpt<double> module({.vocab_size = 5,
                                     .context_length = 4,
                                     .emb_dim = 4,
                                     .num_heads = 2,
                                     .num_layers = 2,
                                     .dropout = dropout,
                                     .tie_weights = tied},
                                    generator);
            const auto visit = [&module](const Visitor& visitor) { module.visit_parameters(visitor); };
            scatter(visit);
            const Loss loss = [&] {
                Generator same(77);
                return cross_entropy(std::as_const(module).forward(ids, 2, {.generator = &same}), targets);
            };
            Generator same(77);
            auto [value, d_logits] = cross_entropy_backward(module.forward(ids, 2, {.generator = &same}), targets);
            EXPECT_EQ(value, loss());
            module.backward(std::move(d_logits));
            expect_parameter_slopes(visit, loss, tied ? 30U : 31U);
        }
    }
}

}  // namespace
}  // namespace qkv::nn
