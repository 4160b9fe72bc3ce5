// Rotary positions in the modules: a Llama's attention by Hugging Face, what a trace shows, and what is refused.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "qkv/io.hpp"
#include "qkv/nn.hpp"
#include "support/expect_error.hpp"

namespace qkv::nn {
namespace {

constexpr MultiHeadAttentionOptions kSmall{
    .d_in = 6, .d_out = 8, .context_length = 16, .num_heads = 2, .num_kv_heads = 1};

template <class T>
BasicTensor<T> drawn(const Shape& shape, std::uint64_t seed) {
    Generator generator(seed);
    BasicTensor<T> values(shape);
    generator.uniform_(values.values(), -1.0, 1.0);
    return values;
}

TEST(ModuleRope, EqualsALlamasAttention) {
    const StateDict<double> tensors = io::read_safetensors<double>(QKV_GOLDEN_DIR "/rope.safetensors");
    Generator generator(1);
    BasicMultiHeadAttention<double> attention(
        {.d_in = 24,
         .d_out = 24,
         .context_length = 7,
         .num_heads = 4,
         .num_kv_heads = 2,
         .rope = RopeOptions{.scaling = RopeLlama3{.factor = 8, .original_context = 32}}},
        generator);
    StateDict<double> state;
    const std::string prefix = "llama_attention.state.";
    for (const auto& [name, tensor] : tensors) {
        if (name.starts_with(prefix)) {
            state.emplace(name.substr(prefix.size()), tensor);
        }
    }
    state.emplace("out_proj.bias", Tensor64(Shape{24}));  // Llama has none
    attention.load_state_dict(state);
    attention.eval();
    const Tensor64 output = attention.forward(tensors.at("llama_attention.x"));
    const Tensor64& expected = tensors.at("llama_attention.output");
    ASSERT_EQ(output.shape(), expected.shape());
    double largest = 0;
    for (std::int64_t i = 0; i < output.numel(); ++i) {
        // All is float64 there too, but cosines and sines, which are off by at most 2⁻²⁴ and the angle's 6 · 2⁻²³.
        ASSERT_NEAR(output.data()[i], expected.data()[i], 1e-6) << i;
        largest = std::max(largest, std::fabs(output.data()[i]));
    }
    EXPECT_GT(largest, 0.05);  // the tolerance is small against what it judges
}

TEST(ModuleRope, ATraceShowsQueriesAndKeysBeforeAndAfterTheTurn) {
    for (const bool batched : {false, true}) {
        SCOPED_TRACE(batched);
        MultiHeadAttentionOptions options = kSmall;
        options.rope = RopeOptions{.rotary_dim = 2};
        Generator generator(3);
        MultiHeadAttention attention(options, generator);
        attention.eval();
        const Tensor x = drawn<float>(batched ? Shape{2, 5, 6} : Shape{5, 6}, 4);
        Trace trace;
        const Tensor output = attention.forward(x, {.trace = &trace});
        EXPECT_EQ(attention.forward(x), output);

        const std::int64_t batch = batched ? 2 : 1;
        const auto expect_turned = [&](const char* before, const char* after, std::int64_t heads) {
            const Shape shape = batched ? Shape{2, heads, 5, 4} : Shape{heads, 5, 4};
            ASSERT_TRUE(trace.find(before) != nullptr && trace.find(after) != nullptr);
            const Tensor& from = *trace.find(before);
            const Tensor& to = *trace.find(after);
            ASSERT_EQ(from.shape(), shape);
            ASSERT_EQ(to.shape(), shape);
            for (std::int64_t row = 0; row < batch * heads * 5; ++row) {
                const double angle = static_cast<double>(row % 5);  // the first pair turns by a radian a token
                const float* a = from.data() + 4 * row;
                const float* b = to.data() + 4 * row;
                EXPECT_NEAR(b[0], a[0] * std::cos(angle) - a[1] * std::sin(angle), 1e-6);
                EXPECT_NEAR(b[1], a[1] * std::cos(angle) + a[0] * std::sin(angle), 1e-6);
                EXPECT_EQ(b[2], a[2]);
                EXPECT_EQ(b[3], a[3]);
            }
        };
        expect_turned("queries", "rotated_queries", 2);
        expect_turned("keys", "rotated_keys", 1);

        // The scores are those of what was turned.
        const Tensor& queries = *trace.find("rotated_queries");
        const Tensor& keys = *trace.find("rotated_keys");
        const Tensor& scores = *trace.find("scores");
        for (std::int64_t i = 0; i < scores.numel(); ++i) {
            const std::int64_t query_row = i / 5;
            const std::int64_t sequence = query_row / 10;
            double sum = 0;
            for (std::int64_t d = 0; d < 4; ++d) {
                sum += static_cast<double>(queries.data()[4 * query_row + d]) *
                       static_cast<double>(keys.data()[4 * (sequence * 5 + i % 5) + d]);
            }
            EXPECT_NEAR(scores.data()[i], sum, 1e-6) << i;
        }

        // Without a rope there is neither name, and the same parameters are drawn.
        Generator again(3);
        MultiHeadAttention plain(kSmall, again);
        plain.eval();
        EXPECT_EQ(plain.state_dict(), attention.state_dict());
        Trace plain_trace;
        EXPECT_NE(plain.forward(x, {.trace = &plain_trace}), output);
        EXPECT_EQ(plain_trace.find("rotated_queries"), nullptr);
        EXPECT_EQ(plain_trace.find("rotated_keys"), nullptr);
    }
}

TEST(ModuleRope, CrossAttentionTurnsBothSequencesFromZero) {
    const CrossAttentionOptions plain{.d_query = 4, .d_source = 4, .d_out = 4};
    CrossAttentionOptions options = plain;
    options.rope = RopeOptions{};
    Generator generator(5);
    BasicCrossAttention<double> cross(options, generator);
    cross.eval();
    // Attended to itself, a sequence's first token has unturned queries and keys, its second turned ones.
    BasicTrace<double> trace;
    const Tensor64 x = drawn<double>({3, 4}, 6);
    (void)cross.forward(x, drawn<double>({5, 4}, 7), {.trace = &trace});
    for (const auto& [before, after] : {std::pair{"queries", "rotated_queries"}, std::pair{"keys", "rotated_keys"}}) {
        const Tensor64& from = *trace.find(before);
        const Tensor64& to = *trace.find(after);
        for (std::int64_t d = 0; d < 4; ++d) {
            EXPECT_EQ(to.data()[d], from.data()[d]);
            EXPECT_NE(to.data()[4 + d], from.data()[4 + d]);
        }
        EXPECT_NEAR(to.data()[4], from.data()[4] * std::cos(1.0) - from.data()[6] * std::sin(1.0), 1e-15);
    }
}

TEST(ModuleRopeErrors, OptionsThatDoNotFitTheHeads) {
    Generator generator(1);
    MultiHeadAttentionOptions options = kSmall;
    options.rope = RopeOptions{.rotary_dim = 6};
    EXPECT_ERROR(MultiHeadAttention(options, generator), ErrorCode::invalid_argument, "rotary_dim is 6 and head_dim 4");
    EXPECT_ERROR(MultiHeadAttentionWrapper(options, generator), ErrorCode::unsupported, "rope is not for the wrapper");
    options.d_out = 6;
    options.rope = RopeOptions{};
    EXPECT_ERROR(MultiHeadAttention(options, generator), ErrorCode::invalid_argument, "rotary_dim is 3 and head_dim 3");
    EXPECT_ERROR(CrossAttention({.d_query = 3, .d_source = 3, .d_out = 4, .rope = RopeOptions{.base = 0.5}}, generator),
                 ErrorCode::invalid_argument, "base is 0.5");
}

}  // namespace
}  // namespace qkv::nn
