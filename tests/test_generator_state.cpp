// Stopping and going on: the state of a Generator and of AdamW.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "qkv/nn/linear.hpp"
#include "qkv/nn/multi_head_attention.hpp"
#include "qkv/nn/optimizer.hpp"
#include "qkv/random.hpp"
#include "support/expect_error.hpp"

namespace qkv {
namespace {

TEST(GeneratorState, GoesOnAtAnyPlace) {
    Generator generator(0x123456789ABCDEF0U);
    for (int draws = 0; draws < 1300; ++draws) {
        Generator other(7);
        other.set_state(generator.state());
        EXPECT_EQ(other.seed(), generator.seed());
        Generator copy = generator;
        ASSERT_EQ(other.randn<double>({3}), copy.randn<double>({3})) << "after " << draws;
        ASSERT_EQ(other.random64(), copy.random64());
        (void)generator.random();
    }
}

TEST(GeneratorState, HoldsTheCachedNormal) {
    Generator generator(5);
    (void)generator.randn<double>({1});  // leaves the other half of its pair
    Generator other;
    other.set_state(generator.state());
    EXPECT_EQ(other.randn<double>({1}), generator.randn<double>({1}));
    EXPECT_EQ(other.random(), generator.random());
}

TEST(GeneratorState, RefusesOtherWords) {
    Generator generator(5);
    const std::vector<std::uint32_t> good = generator.state();
    const auto refused = [&](std::vector<std::uint32_t> words) {
        EXPECT_ERROR(generator.set_state(words), ErrorCode::invalid_argument, "set_state");
        EXPECT_EQ(generator.state(), good);
    };
    refused({});
    refused(std::vector<std::uint32_t>(good.begin(), good.end() - 1));
    auto odd = good;
    odd[624] = 625;
    refused(odd);
    odd = good;
    odd.back() = 2;
    refused(odd);
    odd = good;
    odd[628] = 0x7FF00000U;  // an infinite normal
    refused(odd);
}

struct Layer {
    explicit Layer(std::uint64_t seed) : generator(seed), linear(3, 2, true, generator) {
        linear.visit_parameters("l", [this](const std::string& name, nn::Parameter<float>& parameter) {
            parameters.emplace_back(name, &parameter);
        });
    }
    void draw_gradients(std::size_t first = 0) {
        for (std::size_t i = first; i < parameters.size(); ++i) {
            parameters[i].second->gradient = generator.randn(parameters[i].second->value.shape());
        }
    }
    Generator generator;
    nn::Linear linear;
    nn::ParameterList<float> parameters;
};

TEST(AdamWState, GoesOnToTheSameBits) {
    Layer first(1);
    nn::AdamW<float> adamw(first.parameters, {.lr = 0.1});
    EXPECT_TRUE(adamw.state_dict().empty());
    first.draw_gradients(1);  // the weight has none yet, so its count stays behind
    adamw.step();
    EXPECT_EQ(adamw.state_dict().size(), 3U);
    first.draw_gradients();
    adamw.step();
    const StateDict<float> state = adamw.state_dict();
    EXPECT_EQ(state.at("l.bias.step").data()[0], 2);
    EXPECT_EQ(state.at("l.weight.step").data()[0], 1);

    Layer second(2);
    for (std::size_t i = 0; i < 2; ++i) {
        second.parameters[i].second->value = first.parameters[i].second->value;
    }
    second.generator = first.generator;
    nn::AdamW<float> other(second.parameters, {.lr = 0.1});
    other.load_state_dict(state);
    for (int step = 0; step < 3; ++step) {
        first.draw_gradients();
        second.draw_gradients();
        adamw.step();
        other.step();
    }
    EXPECT_EQ(first.linear.weight(), second.linear.weight());
    EXPECT_EQ(*first.linear.bias(), *second.linear.bias());
    EXPECT_EQ(adamw.state_dict(), other.state_dict());
}

TEST(AdamWState, RefusesWhatDoesNotFitAndKeepsItsOwn) {
    Layer layer(1);
    nn::AdamW<float> adamw(layer.parameters, {});
    layer.draw_gradients();
    adamw.step();
    const StateDict<float> good = adamw.state_dict();
    const auto refused = [&](const auto& change, const char* part) {
        StateDict<float> state = good;
        change(state);
        EXPECT_ERROR(adamw.load_state_dict(state), ErrorCode::shape_mismatch, part);
        EXPECT_EQ(adamw.state_dict(), good);
    };
    refused([](auto& state) { state["l.weight.exp_avg"] = Tensor({2, 2}); }, "'l.weight.exp_avg' has shape [2, 2]");
    refused([](auto& state) { state.erase("l.bias.step"); }, "of 'l.bias' there is only a part");
    refused([](auto& state) { state["l.other.exp_avg"] = Tensor({2}); }, "'l.other.exp_avg' belongs to no parameter");
    refused([](auto& state) { state["l.bias.max"] = Tensor({2}); }, "'l.bias.max' belongs to no parameter");
    for (const float step : {0.0F, 1.5F, -1.0F, 2e7F, std::numeric_limits<float>::quiet_NaN()}) {
        refused([step](auto& state) { state["l.bias.step"] = Tensor(Shape{}, {step}); }, "expected a whole number");
    }
}

}  // namespace
}  // namespace qkv
