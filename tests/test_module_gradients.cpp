// backward of every stage against central differences in float64, and the rules of gradients: they add up, they are
// forgotten on request, and a backward that has nothing to go back over is an error.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "qkv/nn.hpp"
#include "support/expect_error.hpp"

namespace qkv::nn {
namespace {

using Tensors = std::vector<Tensor64>;
using Pass64 = Pass<double>;

/// Whose dropout is drawn anew, and equal, in every pass.
constexpr std::uint64_t kDropoutSeed = 77;

Tensor64 drawn(const Shape& shape, std::uint64_t seed) {
    Generator generator(seed);
    Tensor64 values(shape);
    generator.uniform_(values.values(), -1.0, 1.0);
    return values;
}

/// One face for all stages: what goes in, what comes out, and the way back to every input.
template <class Module>
struct Subject {
    Module module;
    Tensors inputs;
    std::vector<bool> source_mask = {};

    [[nodiscard]] Tensor64 forward(Generator generator = Generator(kDropoutSeed)) {
        return call(module, Pass64{.generator = &generator});
    }
    /// Remembers nothing.
    [[nodiscard]] Tensor64 forward_const(Generator generator = Generator(kDropoutSeed)) const {
        return call(module, Pass64{.generator = &generator});
    }
    [[nodiscard]] Tensors backward(const Tensor64& d_output) {
        if constexpr (std::is_same_v<Module, BasicSimpleSelfAttention<double>>) {
            return {module.backward(inputs[0], d_output)};
        } else if constexpr (std::is_same_v<Module, BasicCrossAttention<double>>) {
            auto [queries, source] = module.backward(d_output);
            return {std::move(queries), std::move(source)};
        } else {
            return {module.backward(d_output)};
        }
    }

private:
    template <class AnyModule>
    [[nodiscard]] Tensor64 call(AnyModule& any, const Pass64& pass) const {
        if constexpr (std::is_same_v<Module, BasicCrossAttention<double>>) {
            return any.forward(inputs[0], inputs[1], pass, source_mask);
        } else {
            return any.forward(inputs[0], pass);
        }
    }
};

double dot(const Tensor64& a, const Tensor64& b) {
    double sum = 0;
    for (std::int64_t i = 0; i < a.numel(); ++i) {
        sum += a.data()[i] * b.data()[i];
    }
    return sum;
}

/// `gradient` against (loss(x + h) − loss(x − h)) / 2h for each element of x.
void expect_slopes(const std::string& name, Tensor64& x, const Tensor64& gradient,
                   const std::function<double()>& loss) {
    ASSERT_EQ(gradient.shape(), x.shape()) << name;
    // Truncation is about h² = 1e-10, rounding about 1e-16 / h = 1e-11, for a loss and derivatives around one.
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

/// Every input's and every parameter's gradient of the loss Σ output · d_output.
template <class Module>
void expect_true_gradients(Subject<Module> subject) {
    const Tensor64 output = subject.forward();
    const Tensor64 d_output = drawn(output.shape(), 5);
    const Tensors d_inputs = subject.backward(d_output);
    const StateDict<double> gradients = subject.module.gradients();
    const auto loss = [&] { return dot(subject.forward_const(), d_output); };
    ASSERT_EQ(d_inputs.size(), subject.inputs.size());
    for (std::size_t i = 0; i < d_inputs.size(); ++i) {
        expect_slopes("input " + std::to_string(i), subject.inputs[i], d_inputs[i], loss);
    }
    const auto parameters = subject.module.parameters();
    ASSERT_EQ(gradients.size(), parameters.size());
    for (const auto& [name, parameter] : parameters) {
        expect_slopes(name, parameter->value, gradients.at(name), loss);
    }
    // All those passes were const: backward still goes back over the first one.
    EXPECT_EQ(subject.backward(d_output), d_inputs);
}

/// A sequence of width `width`, or a batch of three.
Tensor64 sequences(bool batched, std::int64_t tokens, std::int64_t width, std::uint64_t seed = 3) {
    return drawn(batched ? Shape{3, tokens, width} : Shape{tokens, width}, seed);
}

Subject<BasicCausalAttention<double>> causal(bool batched, double dropout = 0, bool bias = true) {
    Generator generator(11);
    return {{{.d_in = 3, .d_out = 4, .context_length = 6, .dropout = dropout, .qkv_bias = bias}, generator},
            {sequences(batched, 5, 3)}};
}

MultiHeadAttentionOptions four_heads(std::int64_t kv_heads, double dropout = 0) {
    return {.d_in = 3,
            .d_out = 8,
            .context_length = 6,
            .dropout = dropout,
            .num_heads = 4,
            .qkv_bias = true,
            .num_kv_heads = kv_heads};
}

Subject<BasicMultiHeadAttention<double>> multi_head(bool batched, std::int64_t kv_heads, double dropout = 0) {
    Generator generator(12);
    return {{four_heads(kv_heads, dropout), generator}, {sequences(batched, 5, 3)}};
}

Subject<BasicMultiHeadAttentionWrapper<double>> wrapper(bool batched, double dropout = 0) {
    Generator generator(13);
    MultiHeadAttentionOptions options = four_heads(0, dropout);
    options.d_out = 2;
    return {{options, generator}, {sequences(batched, 5, 3)}};
}

Subject<BasicCrossAttention<double>> cross(bool batched, std::int64_t kv_heads, double dropout = 0) {
    Generator generator(14);
    const CrossAttentionOptions options{.d_query = 3,
                                        .d_source = 5,
                                        .d_out = 8,
                                        .dropout = dropout,
                                        .num_heads = 4,
                                        .qkv_bias = true,
                                        .num_kv_heads = kv_heads};
    return {{options, generator}, {sequences(batched, 4, 3), sequences(batched, 6, 5, 4)}};
}

Subject<BasicSelfAttention<double>> self(bool batched, Init init, bool bias = false) {
    Generator generator(15);
    return {{{.d_in = 3, .d_out = 4, .init = init, .qkv_bias = bias}, generator}, {sequences(batched, 5, 3)}};
}

class ModuleGradients : public testing::TestWithParam<bool> {
protected:
    [[nodiscard]] static bool batched() { return GetParam(); }
};

TEST_P(ModuleGradients, OfSimpleSelfAttention) {
    for (const Normalise how : {Normalise::sum, Normalise::naive_softmax, Normalise::softmax}) {
        SCOPED_TRACE(static_cast<int>(how));
        Tensor64 x = sequences(batched(), 5, 3);
        for (double& value : x.values()) {
            value += 2;  // positive, since `sum` divides by the scores' sum
        }
        expect_true_gradients(Subject<BasicSimpleSelfAttention<double>>{BasicSimpleSelfAttention<double>(how), {x}});
    }
}

TEST_P(ModuleGradients, OfSelfAttention) {
    expect_true_gradients(self(batched(), Init::uniform));
    expect_true_gradients(self(batched(), Init::linear));
    expect_true_gradients(self(batched(), Init::linear, true));
}

TEST_P(ModuleGradients, OfCausalAttention) {
    for (const double dropout : {0.0, 0.5}) {
        SCOPED_TRACE(dropout);
        expect_true_gradients(causal(batched(), dropout));
        expect_true_gradients(causal(batched(), dropout, false));
    }
}

TEST_P(ModuleGradients, OfTheWrapper) {
    for (const double dropout : {0.0, 0.5}) {
        SCOPED_TRACE(dropout);
        expect_true_gradients(wrapper(batched(), dropout));
    }
}

TEST_P(ModuleGradients, OfMultiHeadAttentionGroupedOrNot) {
    for (const std::int64_t kv_heads : {1, 2, 4}) {
        for (const double dropout : {0.0, 0.5}) {
            SCOPED_TRACE(testing::Message() << kv_heads << " kv heads, dropout " << dropout);
            expect_true_gradients(multi_head(batched(), kv_heads, dropout));
        }
    }
}

TEST_P(ModuleGradients, OfCrossAttentionGroupedOrNot) {
    for (const std::int64_t kv_heads : {1, 2, 4}) {
        for (const double dropout : {0.0, 0.5}) {
            SCOPED_TRACE(testing::Message() << kv_heads << " kv heads, dropout " << dropout);
            expect_true_gradients(cross(batched(), kv_heads, dropout));
        }
    }
}

TEST_P(ModuleGradients, WithRotaryPositions) {
    for (const RopePairing pairing : {RopePairing::half_split, RopePairing::interleaved}) {
        const RopeOptions rope{.rotary_dim = 2,
                               .base = 100.0,
                               .pairing = pairing,
                               .scaling = RopeYarn{.factor = 2, .original_context = 9}};
        MultiHeadAttentionOptions heads = four_heads(2, 0.5);
        heads.d_out = 16;
        heads.rope = rope;
        Generator generator(12);
        expect_true_gradients(
            Subject<BasicMultiHeadAttention<double>>{{heads, generator}, {sequences(batched(), 5, 3)}});
        const CrossAttentionOptions cross{
            .d_query = 3, .d_source = 5, .d_out = 16, .num_heads = 4, .num_kv_heads = 2, .rope = rope};
        expect_true_gradients(Subject<BasicCrossAttention<double>>{
            {cross, generator}, {sequences(batched(), 4, 3), sequences(batched(), 6, 5, 4)}});
    }
}

TEST_P(ModuleGradients, OfCrossAttentionWithMaskedSources) {
    for (const std::int64_t kv_heads : {2, 4}) {
        Subject<BasicCrossAttention<double>> subject = cross(batched(), kv_heads, 0.5);
        subject.source_mask.assign(batched() ? 18 : 6, true);
        subject.source_mask[1] = subject.source_mask[5] = false;
        expect_true_gradients(subject);
        // The last sequence, or the only one, has no source token left.
        std::fill(subject.source_mask.end() - 6, subject.source_mask.end(), false);
        expect_true_gradients(subject);
        (void)subject.forward();
        const Tensor64 d_source = subject.backward(drawn(subject.forward_const().shape(), 5))[1];
        for (const double value : d_source.values().last(6 * 5)) {
            EXPECT_EQ(value, 0);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Inputs, ModuleGradients, testing::Bool(),
                         [](const auto& batched) { return batched.param ? "Batch" : "OneSequence"; });

/// Calls `check` with one subject of every stage that remembers.
void for_each_stage(const auto& check) {
    check("self, raw", self(true, Init::uniform));
    check("self, linear", self(true, Init::linear, true));
    check("causal", causal(true, 0.5));
    check("wrapper", wrapper(true, 0.5));
    check("multi-head", multi_head(true, 2, 0.5));
    check("cross", cross(true, 2, 0.5));
}

TEST(ModuleGradientRules, GradientsAddUpUntilTheyAreZeroed) {
    for_each_stage([](const char* stage, auto subject) {
        SCOPED_TRACE(stage);
        EXPECT_TRUE(subject.module.gradients().empty());
        const Tensor64 d_output = drawn(subject.forward().shape(), 5);
        (void)subject.backward(d_output);
        const StateDict<double> once = subject.module.gradients();
        ASSERT_EQ(once.size(), subject.module.parameters().size());
        (void)subject.forward();
        (void)subject.backward(d_output);
        for (const auto& [name, twice] : subject.module.gradients()) {
            for (std::int64_t i = 0; i < twice.numel(); ++i) {
                ASSERT_EQ(twice.data()[i], 2 * once.at(name).data()[i]) << name;
            }
        }
        subject.module.zero_gradients();
        EXPECT_TRUE(subject.module.gradients().empty());
        (void)subject.forward();
        (void)subject.backward(d_output);
        EXPECT_EQ(subject.module.gradients(), once);
    });
}

TEST(ModuleGradientRules, BackwardNeedsAForwardInTrainingOfAModuleThatIsNotConst) {
    for_each_stage([](const char* stage, auto subject) {
        SCOPED_TRACE(stage);
        const Tensor64 d_output = drawn(subject.forward_const().shape(), 5);
        EXPECT_ERROR(subject.backward(d_output), ErrorCode::invalid_argument, "backward without a forward");
        (void)subject.forward();
        (void)subject.backward(d_output);
        subject.module.eval();
        (void)subject.forward();
        EXPECT_ERROR(subject.backward(d_output), ErrorCode::invalid_argument, "call train() and forward()");
    });
}

TEST(ModuleGradientRules, TheGradientMustHaveTheOutputsShape) {
    for_each_stage([](const char* stage, auto subject) {
        SCOPED_TRACE(stage);
        const Shape right = subject.forward().shape();
        const std::string expected = "expected " + to_string(right);
        const std::int64_t tokens = right[1];
        const std::int64_t width = right[2];
        for (const Shape& wrong :
             {Shape{}, Shape{0}, Shape{tokens, width}, Shape{2, tokens, width}, Shape{3, tokens + 1, width},
              Shape{3, tokens, width / 2}, Shape{3, tokens, width + 1}, Shape{1, 3, tokens, width}}) {
            SCOPED_TRACE(to_string(wrong));
            EXPECT_ERROR(subject.backward(Tensor64(wrong)), ErrorCode::shape_mismatch, expected);
        }
        EXPECT_TRUE(subject.module.gradients().empty());
        // An input without a batch has a gradient without one, and one sequence is not a batch of one.
        for (Tensor64& input : subject.inputs) {
            input = sequences(false, input.size(1), input.size(2));
        }
        (void)subject.forward();
        EXPECT_ERROR(subject.backward(Tensor64({1, tokens, width})), ErrorCode::shape_mismatch,
                     "expected " + to_string({tokens, width}));
        EXPECT_EQ(subject.backward(Tensor64({tokens, width}))[0].shape(), subject.inputs[0].shape());
    });
    const BasicSimpleSelfAttention<double> simple;
    EXPECT_ERROR(simple.backward(Tensor64({3, 2}), Tensor64({2, 3})), ErrorCode::shape_mismatch, "expected [3, 2]");
    Generator generator(1);
    BasicLinear<double> linear(3, 2, false, generator);
    EXPECT_ERROR(linear.backward(Tensor64({2, 3}), Tensor64({3, 2})), ErrorCode::shape_mismatch, "expected [2, 2]");
    EXPECT_ERROR(linear.backward(Tensor64({3, 2}), Tensor64({2, 2})), ErrorCode::shape_mismatch, "expected [..., 3]");
    Parameter<double> parameter(Tensor64({2, 3}));
    EXPECT_ERROR(parameter.add_gradient(Tensor64({3})), ErrorCode::shape_mismatch, "parameter of shape [2, 3]");
}

TEST(ModuleGradientRules, ACopyHasParametersAndAMemoryOfItsOwn) {
    for_each_stage([](const char* stage, auto subject) {
        SCOPED_TRACE(stage);
        const Tensor64 before = subject.forward();
        const Tensor64 d_output = drawn(before.shape(), 5);
        auto copy = subject;
        const Tensors d_inputs = subject.backward(d_output);
        EXPECT_TRUE(copy.module.gradients().empty());
        // The copy goes back over the pass it was copied with, although the original has another one since.
        subject.inputs[0] = sequences(true, 5, 3, 99);
        (void)subject.forward();
        EXPECT_EQ(copy.backward(d_output), d_inputs);

        Sgd<double> sgd(copy.module.parameters(), {.lr = 0.5});
        sgd.step();
        EXPECT_NE(copy.forward(), before);
        subject.inputs = {copy.inputs};
        EXPECT_EQ(subject.forward(), before);
    });
}

TEST(ModuleGradientRules, OptimizersRefuseAGradientOfAnotherShape) {
    Subject<BasicCausalAttention<double>> subject = causal(false);
    const ParameterList<double> parameters = subject.module.parameters();
    Sgd<double> sgd(parameters, {});
    AdamW<double> adamw(parameters, {});
    parameters.front().second->gradient = Tensor64({2});
    EXPECT_ERROR(sgd.step(), ErrorCode::shape_mismatch, "'W_query.weight' has shape [2]; expected [4, 3]");
    EXPECT_ERROR(adamw.step(), ErrorCode::shape_mismatch, "'W_query.weight' has shape [2]; expected [4, 3]");
}

/// Either all parameters take a step or none: what is refused leaves no counter behind.
TEST(ModuleGradientRules, ARefusedStepOfAdamWNeverWas) {
    const auto stepped = [](bool refused_first) {
        Subject<BasicCausalAttention<double>> subject = causal(false);
        const ParameterList<double> parameters = subject.module.parameters();
        AdamW<double> adamw(parameters, {});
        for (const auto& [name, parameter] : parameters) {
            parameter->gradient = drawn(parameter->value.shape(), 7);
        }
        if (refused_first) {
            parameters.back().second->gradient = Tensor64({2});
            EXPECT_THROW(adamw.step(), Error);
            EXPECT_TRUE(adamw.state_dict().empty());
            parameters.back().second->gradient = drawn(parameters.back().second->value.shape(), 7);
        }
        adamw.step();
        return subject.module.state_dict();
    };
    EXPECT_EQ(stepped(true), stepped(false));
}

/// Rows of a key or value layer, each head's as often as query heads share it.
Tensor64 repeated_heads(const Tensor64& tensor, std::int64_t head_dim, std::int64_t times) {
    Shape shape = tensor.shape();
    shape[0] *= times;
    const std::int64_t row = tensor.numel() / tensor.size(0);
    Tensor64 all(shape);
    for (std::int64_t to = 0; to < shape[0]; ++to) {
        const std::int64_t from = to / (head_dim * times) * head_dim + to % head_dim;
        std::copy_n(tensor.data() + from * row, row, all.data() + to * row);
    }
    return all;
}

/// The opposite: gradients of heads that were copies of one add up.
Tensor64 summed_heads(const Tensor64& tensor, std::int64_t head_dim, std::int64_t times) {
    Shape shape = tensor.shape();
    shape[0] /= times;
    const std::int64_t row = tensor.numel() / tensor.size(0);
    Tensor64 sums(shape);
    for (std::int64_t from = 0; from < tensor.size(0); ++from) {
        const std::int64_t to = from / (head_dim * times) * head_dim + from % head_dim;
        for (std::int64_t i = 0; i < row; ++i) {
            sums.data()[to * row + i] += tensor.data()[from * row + i];
        }
    }
    return sums;
}

void expect_close(const Tensor64& found, const Tensor64& expected, const std::string& name) {
    ASSERT_EQ(found.shape(), expected.shape()) << name;
    for (std::int64_t i = 0; i < found.numel(); ++i) {
        ASSERT_NEAR(found.data()[i], expected.data()[i], 1e-13) << name << ", element " << i;
    }
}

template <class Module>
void expect_as_ungrouped(Subject<Module> grouped, Subject<Module> ungrouped, std::int64_t times) {
    constexpr std::int64_t kHeadDim = 2;
    const auto is_shared = [](const std::string& name) { return name.starts_with("W_key") || name.starts_with("W_v"); };
    StateDict<double> state = grouped.module.state_dict();
    for (auto& [name, tensor] : state) {
        tensor = is_shared(name) ? repeated_heads(tensor, kHeadDim, times) : tensor;
    }
    ungrouped.module.load_state_dict(state);
    const Tensor64 output = grouped.forward();
    expect_close(output, ungrouped.forward(), "output");
    const Tensor64 d_output = drawn(output.shape(), 5);
    const Tensors d_inputs = grouped.backward(d_output);
    const Tensors expected = ungrouped.backward(d_output);
    for (std::size_t i = 0; i < d_inputs.size(); ++i) {
        expect_close(d_inputs[i], expected[i], "input " + std::to_string(i));
    }
    for (const auto& [name, gradient] : ungrouped.module.gradients()) {
        const bool shared = is_shared(name);
        expect_close(grouped.module.gradients().at(name), shared ? summed_heads(gradient, kHeadDim, times) : gradient,
                     name);
    }
}

TEST(GroupedQuery, EqualsTheUngroupedModuleWithRepeatedKeyAndValueRows) {
    for (const std::int64_t kv_heads : {1, 2}) {
        for (const bool batched : {false, true}) {
            for (const double dropout : {0.0, 0.5}) {
                SCOPED_TRACE(testing::Message() << kv_heads << " kv heads, dropout " << dropout);
                expect_as_ungrouped(multi_head(batched, kv_heads, dropout), multi_head(batched, 4, dropout),
                                    4 / kv_heads);
                expect_as_ungrouped(cross(batched, kv_heads, dropout), cross(batched, 4, dropout), 4 / kv_heads);
            }
        }
    }
    EXPECT_EQ(multi_head(false, 0).module.state_dict(), multi_head(false, 4).module.state_dict());
    EXPECT_ERROR(multi_head(false, 3), ErrorCode::invalid_argument, "num_kv_heads is 3");
    EXPECT_ERROR(cross(false, 3), ErrorCode::invalid_argument, "num_kv_heads is 3");
}

}  // namespace
}  // namespace qkv::nn
