// What a Gpt and its parts refuse, and that nothing has changed then.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "qkv/nn.hpp"
#include "support/expect_error.hpp"

namespace qkv::nn {
namespace {

using Ids = std::vector<std::int64_t>;

GptOptions small() {
    return {.vocab_size = 11, .context_length = 6, .emb_dim = 8, .num_heads = 2, .num_layers = 2, .qkv_bias = true};
}

Gpt model_of(const GptOptions& options, std::uint64_t seed = 5) {
    Generator generator(seed);
    return {options, generator};
}

TEST(GptErrors, OfOptions) {
    const auto with = [](const auto& change) {
        GptOptions options = small();
        change(options);
        return options;
    };
    EXPECT_ERROR(model_of(with([](GptOptions& o) { o.vocab_size = 0; })), ErrorCode::invalid_argument,
                 "vocab_size is 0");
    EXPECT_ERROR(model_of(with([](GptOptions& o) { o.context_length = -1; })), ErrorCode::invalid_argument,
                 "context_length is -1");
    EXPECT_ERROR(model_of(with([](GptOptions& o) { o.emb_dim = 0; })), ErrorCode::invalid_argument, "emb_dim is 0");
    EXPECT_ERROR(model_of(with([](GptOptions& o) { o.num_layers = 0; })), ErrorCode::invalid_argument,
                 "num_layers is 0");
    EXPECT_ERROR(model_of(with([](GptOptions& o) { o.num_heads = 3; })), ErrorCode::invalid_argument,
                 "does not divide by 3 heads");
    EXPECT_ERROR(model_of(with([](GptOptions& o) { o.dropout = 1.5; })), ErrorCode::invalid_argument, "dropout is 1.5");
    EXPECT_ERROR(GptCache(small(), 0), ErrorCode::invalid_argument, "0 sequences");
    EXPECT_ERROR(GptCache(with([](GptOptions& o) { o.num_heads = 0; })), ErrorCode::invalid_argument, "num_heads is 0");
}

TEST(GptErrors, OfLayers) {
    Generator generator;
    EXPECT_ERROR(Embedding(0, 3, generator), ErrorCode::invalid_argument, "0 rows of 3");
    EXPECT_ERROR(LayerNorm(0), ErrorCode::invalid_argument, "width is 0");
    EXPECT_ERROR(LayerNorm(3, 0.0), ErrorCode::invalid_argument, "eps is 0");
    EXPECT_ERROR(LayerNorm(3, std::numeric_limits<double>::quiet_NaN()), ErrorCode::invalid_argument, "eps is");
    EXPECT_ERROR(LayerNorm(3).forward(Tensor({2, 4})), ErrorCode::shape_mismatch, "[2, 4]; expected [..., 3]");
    LayerNorm norm(3);
    EXPECT_ERROR(norm.backward(Tensor({2, 3}), Tensor({3, 3})), ErrorCode::shape_mismatch, "[3, 3]; expected [2, 3]");
    Embedding embedding(4, 3, generator);
    EXPECT_ERROR(embedding.forward(Ids{1, 4}), ErrorCode::out_of_range, "id 4 at place 1; expected 0 to 3");
    EXPECT_ERROR(embedding.forward(Ids{-1}), ErrorCode::out_of_range, "id -1 at place 0");
    EXPECT_ERROR(embedding.backward(Ids{1, 2}, Tensor({3, 3})), ErrorCode::shape_mismatch, "[3, 3]; expected [2, 3]");
    EXPECT_ERROR(embedding.backward(Ids{7}, Tensor({1, 3})), ErrorCode::out_of_range, "id 7");
    EXPECT_TRUE(embedding.weight_parameter().gradient.empty());
    embedding.weight_parameter().gradient = Tensor({2, 3});
    EXPECT_ERROR(embedding.backward(Ids{3}, Tensor({1, 3})), ErrorCode::shape_mismatch, "[2, 3]");
    EXPECT_ERROR(gelu_backward(Tensor({2}), Tensor({3})), ErrorCode::shape_mismatch, "[3]; expected [2]");
}

TEST(GptErrors, OfForward) {
    GptOptions options = small();
    options.dropout = 0.1;
    Gpt model = model_of(options);
    EXPECT_ERROR(model.forward(Ids{1, 2, 3}, 2), ErrorCode::shape_mismatch, "3 ids in a batch of 2");
    EXPECT_ERROR(model.forward(Ids{1, 2}, 0), ErrorCode::shape_mismatch, "batch of 0");
    EXPECT_ERROR(model.forward(Ids{}, 1), ErrorCode::shape_mismatch, "0 ids");
    EXPECT_ERROR(model.forward(Ids(7, 1), 1), ErrorCode::out_of_range, "7 tokens");
    EXPECT_ERROR(model.forward(Ids{1, 11}, 1), ErrorCode::out_of_range, "id 11 at place 1; expected 0 to 10");
    EXPECT_ERROR(model.forward(Ids{1}, 1), ErrorCode::invalid_argument, "needs a Generator");
    GptCache cache(options);
    EXPECT_ERROR(model.forward(Ids{1}, cache), ErrorCode::unsupported, "dropout 0.1 in training over a cache");
}

TEST(GptErrors, OfBackward) {
    Gpt model = model_of(small());
    EXPECT_ERROR(model.backward(Tensor({1, 2, 11})), ErrorCode::invalid_argument, "backward without a forward");
    (void)model.forward(Ids{1, 2}, 1);
    EXPECT_ERROR(model.backward(Tensor({2, 11})), ErrorCode::shape_mismatch, "[2, 11]; expected [1, 2, 11]");
    model.backward(Tensor({1, 2, 11}));
    EXPECT_ERROR(model.backward(Tensor({1, 2, 11})), ErrorCode::invalid_argument, "backward without a forward");
    // Its blocks have given their memory back as well.
    std::size_t blocks = 0;
    model.visit_children([&blocks](const std::string&, BasicModule<float>& child) {
        EXPECT_ERROR(dynamic_cast<TransformerBlock&>(child).backward(Tensor({1, 2, 8})), ErrorCode::invalid_argument,
                     "backward without a forward");
        ++blocks;
    });
    EXPECT_EQ(blocks, 2U);
    // A forward that fails leaves nothing of the one before it.
    (void)model.forward(Ids{1, 2}, 1);
    EXPECT_ERROR(model.forward(Ids{1, 99}, 1), ErrorCode::out_of_range, "id 99");
    EXPECT_ERROR(model.backward(Tensor({1, 2, 11})), ErrorCode::invalid_argument, "backward without a forward");
    (void)model.forward(Ids{1, 2}, 1);
    model.eval();
    EXPECT_ERROR(model.backward(Tensor({1, 2, 11})), ErrorCode::invalid_argument, "backward without a forward");

    Generator generator;
    FeedForward feed_forward(4, Gelu::tanh, generator);
    EXPECT_ERROR(feed_forward.backward(Tensor({2, 4})), ErrorCode::invalid_argument, "backward without a forward");
    TransformerBlock block({.emb_dim = 4, .context_length = 3}, generator);
    (void)block.forward(Tensor({2, 4}));
    EXPECT_ERROR(block.backward(Tensor({3, 4})), ErrorCode::shape_mismatch, "[3, 4]; expected [2, 4]");
}

TEST(GptErrors, OfACacheChangeNothing) {
    Gpt model = model_of(small());
    model.eval();
    GptCache cache(small(), 2);
    (void)model.forward(Ids{1, 2, 3, 4, 5, 6}, cache);
    EXPECT_ERROR(model.forward(Ids{1, 2, 3}, cache), ErrorCode::shape_mismatch, "3 ids for 2 sequences");
    EXPECT_ERROR(model.forward(Ids(8, 1), cache), ErrorCode::out_of_range, "7 tokens");
    EXPECT_ERROR(model.forward(Ids{1, 20}, cache), ErrorCode::out_of_range, "id 20");
    for (const std::vector<std::int64_t>& ends :
         std::vector<std::vector<std::int64_t>>{{0, 2}, {0, 1, 3}, {1, 1, 2}, {0, 3, 2}}) {
        EXPECT_ERROR(model.forward(Ids{1, 2}, cache, {}, ends), ErrorCode::shape_mismatch, "cumulative_tokens");
    }
    GptOptions deeper = small();
    deeper.num_layers = 3;
    GptCache other(deeper);
    EXPECT_ERROR(model.forward(Ids{1}, other), ErrorCode::shape_mismatch, "3 layers; expected 2");
    GptOptions heads = small();
    heads.num_heads = 4;
    GptCache more_heads(heads);
    EXPECT_ERROR(model.forward(Ids{1}, more_heads), ErrorCode::shape_mismatch, "4 heads");
    EXPECT_ERROR(cache.size(2), ErrorCode::out_of_range, "sequence 2");
    EXPECT_ERROR(cache.truncate(-1, 0), ErrorCode::out_of_range, "sequence -1");
    EXPECT_ERROR(cache.layer(2), ErrorCode::out_of_range, "layer 2");
    EXPECT_EQ(cache.size(0), 3);
    EXPECT_EQ(cache.size(1), 3);

    // The second layer refuses; the first has appended by then.
    GptCache::Layer& second = cache.layer(1);
    second.ids[1] = second.ids[0];
    EXPECT_ERROR(model.forward(Ids{1, 2}, cache), ErrorCode::invalid_argument, "");
    EXPECT_EQ(cache.size(0), 3);
}

TEST(GptErrors, OfCrossEntropy) {
    const Tensor logits({2, 3});
    EXPECT_ERROR(cross_entropy(logits, Ids{1}), ErrorCode::shape_mismatch, "1 targets for logits of shape [2, 3]");
    EXPECT_ERROR(cross_entropy(logits, Ids{1, 3}), ErrorCode::out_of_range, "target 3 at place 1; expected 0 to 2");
    EXPECT_ERROR(cross_entropy_backward(logits, Ids{-1, 0}), ErrorCode::out_of_range, "target -1 at place 0");
    EXPECT_ERROR(cross_entropy(Tensor(Shape{}), Ids{}), ErrorCode::shape_mismatch, "expected");
    EXPECT_ERROR(cross_entropy(Tensor({2, 0}), Ids{}), ErrorCode::shape_mismatch, "[2, 0]");
}

TEST(GptErrors, OfStates) {
    GptOptions options = small();
    options.tie_weights = true;
    Gpt model = model_of(options);
    const StateDict<float> whole = model.state_dict();
    const auto with = [&whole](const auto& change) {
        StateDict<float> state = whole;
        change(state);
        return state;
    };
    const auto load = [&model](const StateDict<float>& state) { model.load_state_dict(state); };
    EXPECT_ERROR(load(with([](auto& state) { state.at("out_head.weight")(0, 0) += 1; })), ErrorCode::invalid_argument,
                 "out_head.weight and tok_emb.weight differ");
    EXPECT_ERROR(load(with([](auto& state) { state.erase("trf_blocks.1.norm2.scale"); })), ErrorCode::shape_mismatch,
                 "'trf_blocks.1.norm2.scale' of shape [8] is missing");
    EXPECT_ERROR(load(with([](auto& state) { state.emplace("trf_blocks.2.norm1.scale", Tensor({8})); })),
                 ErrorCode::shape_mismatch, "'trf_blocks.2.norm1.scale'");
    EXPECT_ERROR(load(with([](auto& state) { state.at("trf_blocks.0.att.mask")(1, 0) = 1; })),
                 ErrorCode::invalid_argument, "'trf_blocks.0.att.mask'");
    EXPECT_EQ(model.state_dict(), whole);

    EXPECT_ERROR(gpt_options_of(StateDict<float>{}, 2), ErrorCode::shape_mismatch, "'tok_emb.weight'");
    EXPECT_ERROR(gpt_options_of(with([](auto& state) { state.erase("pos_emb.weight"); }), 2), ErrorCode::shape_mismatch,
                 "'pos_emb.weight' ('wpe.weight' of a GPT-2) is missing");
    EXPECT_ERROR(gpt_options_of(with([](auto& state) { state.at("tok_emb.weight") = Tensor({4}); }), 2),
                 ErrorCode::shape_mismatch, "has shape [4]");
    EXPECT_ERROR(gpt_options_of(with([](auto& state) { state.erase("trf_blocks.0.norm1.scale"); }), 2),
                 ErrorCode::shape_mismatch, "'trf_blocks.0.norm1.scale'");
    EXPECT_ERROR(gpt_options_of(whole, 3), ErrorCode::invalid_argument, "does not divide by 3 heads");
}

TEST(GptErrors, OfGpt2States) {
    Gpt model = model_of(small());
    const auto load = [&model](StateDict<float> state) {
        state.try_emplace("wte.weight", Shape{11, 8});
        model.load_state_dict(state);
    };
    EXPECT_ERROR(load({{"h.0.attn.c_attn.weight", Tensor({8, 23})}}), ErrorCode::shape_mismatch,
                 "'h.0.attn.c_attn.weight' has shape [8, 23]");
    EXPECT_ERROR(load({{"h.0.attn.c_attn.bias", Tensor(Shape{})}}), ErrorCode::shape_mismatch,
                 "'h.0.attn.c_attn.bias'");
    EXPECT_ERROR(load({{"transformer.h.1.mlp.c_fc.weight", Tensor({8})}}), ErrorCode::shape_mismatch,
                 "'transformer.h.1.mlp.c_fc.weight' has shape [8]; expected [in, out]");
    EXPECT_ERROR(load({{"transformer.wte.weight", Tensor({11, 8})}}), ErrorCode::shape_mismatch,
                 "'tok_emb.weight' is there twice");
    EXPECT_ERROR(load({}), ErrorCode::shape_mismatch, "is missing");
}

}  // namespace
}  // namespace qkv::nn
