// Rotary position embedding against what others compute: Hugging Face (golden/rope.json) and ONNX's own cases
// (golden/onnx_rope.json).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qkv/io.hpp"
#include "qkv/rope.hpp"

namespace qkv {
namespace {

struct Goldens {
    nlohmann::json file;
    StateDict<float> tensors;
};

const Goldens& goldens() {
    static const Goldens all = [] {
        std::ifstream file(QKV_GOLDEN_DIR "/rope.json");
        return Goldens{nlohmann::json::parse(file), io::read_safetensors<float>(QKV_GOLDEN_DIR "/rope.safetensors")};
    }();
    return all;
}

RopeOptions golden_options(const nlohmann::json& golden) {
    const nlohmann::json& given = golden.at("parameters");
    const std::string type = given.at("rope_type");
    const auto number = [&](const char* key, double otherwise) { return given.value(key, otherwise); };
    const double factor = number("factor", 1.0);
    const std::int64_t context =
        given.value("original_max_position_embeddings", goldens().file.at("original_context").get<std::int64_t>());
    RopeOptions options{.rotary_dim = golden.at("rotary_dim"), .base = given.at("rope_theta")};
    if (type == "linear") {
        options.scaling = RopeLinear{factor};
    } else if (type == "dynamic") {
        options.scaling = RopeDynamicNtk{factor, context};
    } else if (type == "yarn") {
        RopeYarn yarn{.factor = factor,
                      .original_context = context,
                      .beta_fast = number("beta_fast", 32.0),
                      .beta_slow = number("beta_slow", 1.0),
                      .truncate = given.value("truncate", true),
                      .mscale = number("mscale", 0.0),
                      .mscale_all_dim = number("mscale_all_dim", 0.0)};
        if (given.contains("attention_factor")) {
            yarn.attention_factor = given.at("attention_factor");
        }
        options.scaling = yarn;
    } else if (type == "llama3") {
        options.scaling = RopeLlama3{factor, number("low_freq_factor", 0.0), number("high_freq_factor", 0.0), context};
    } else {
        EXPECT_EQ(type, "default");
    }
    return options;
}

TEST(RopeGoldens, EqualHuggingFace) {
    const std::vector<std::int64_t> positions = goldens().file.at("positions");
    const auto tokens = static_cast<std::int64_t>(positions.size());
    ASSERT_EQ(goldens().file.at("cases").size(), 14U);
    for (const nlohmann::json& golden : goldens().file.at("cases")) {
        const std::string name = golden.at("name");
        SCOPED_TRACE(name);
        const std::int64_t head_dim = golden.at("head_dim");
        const std::int64_t length = golden.at("length");
        RopeOptions options = golden_options(golden);
        const Rope rope(options, head_dim);
        EXPECT_DOUBLE_EQ(rope.attention_factor(), golden.at("attention_factor").get<double>());

        // Hugging Face works in fp32: the exponent is off by 2⁻²⁵, which ln(base) ≤ 21 (of dynamic NTK) multiplies, and
        // power, reciprocal and blend round a few times more.
        constexpr double kFrequencyError = 15 * 0x1p-24;
        const std::vector<double> frequencies = rope.frequencies(length);
        const Tensor& theirs = goldens().tensors.at(name + ".inv_freq");
        ASSERT_EQ(static_cast<std::int64_t>(frequencies.size()), theirs.numel());
        for (std::size_t pair = 0; pair < frequencies.size(); ++pair) {
            EXPECT_NEAR(theirs.values()[pair], frequencies[pair], kFrequencyError * frequencies[pair]) << pair;
        }

        const Tensor& x = goldens().tensors.at(name + ".x");
        const Shape4 shape{1, x.size(1), tokens, head_dim};
        for (const RopePairing pairing : {RopePairing::half_split, RopePairing::interleaved}) {
            options.pairing = pairing;
            std::vector<float> got(static_cast<std::size_t>(x.numel()));
            Rope(options, head_dim)
                .apply(view(x.data(), shape), view(got.data(), shape), {.each = positions, .length = length});
            const Tensor& expected =
                goldens().tensors.at(name + (pairing == RopePairing::half_split ? ".half_split" : ".interleaved"));
            for (std::int64_t i = 0; i < x.numel(); ++i) {
                // The fastest pair turns least precisely: its angle is off by what its frequency is, and a rounding.
                const auto angle = static_cast<double>(positions[static_cast<std::size_t>(i / head_dim % tokens)]);
                const double tolerance =
                    8.0 * rope.attention_factor() * ((kFrequencyError + 0x1p-24) * angle + 0x1p-22);
                ASSERT_NEAR(got[static_cast<std::size_t>(i)], expected.data()[i], tolerance) << i;
            }
        }
    }
}

/// ONNX's RotaryEmbedding by Rope::from_tables.
std::vector<float> onnx_rotary_embedding(const nlohmann::json& attributes, const Tensor& x, const Tensor& cos,
                                         const Tensor& sin, const Tensor* position_ids) {
    const bool heads_last = x.rank() == 3;  // [batch, tokens, heads · head_dim]
    const std::int64_t heads = heads_last ? attributes.at("num_heads").get<std::int64_t>() : x.size(1);
    const std::int64_t head_dim = heads_last ? x.size(2) / heads : x.size(3);
    const std::int64_t batch = x.size(0);
    const std::int64_t tokens = heads_last ? x.size(1) : x.size(2);
    std::vector<std::int64_t> positions(static_cast<std::size_t>(batch * tokens));
    for (std::size_t i = 0; i < positions.size(); ++i) {
        // Without ids the tables are [batch, tokens, R/2]: a row for each token of each sequence.
        positions[i] = position_ids == nullptr ? static_cast<std::int64_t>(i)
                                               : static_cast<std::int64_t>(position_ids->values()[i]);
    }
    const std::int64_t pairs = cos.size(-1);
    EXPECT_EQ(2 * pairs, attributes.value("rotary_embedding_dim", head_dim));
    const Shape4 table{1, 1, cos.numel() / pairs, pairs};
    const Rope rope =
        Rope::from_tables(view(cos.data(), table), view(sin.data(), table), head_dim,
                          attributes.value("interleaved", 0) != 0 ? RopePairing::interleaved : RopePairing::half_split);
    std::vector<float> y(x.values().begin(), x.values().end());
    const TensorView in_place = heads_last ? tokens_first(y.data(), batch, tokens, heads, head_dim)
                                           : view(y.data(), {batch, heads, tokens, head_dim});
    rope.apply(in_place, in_place, {.each = positions});
    return y;
}

TEST(RopeGoldens, AllEightCasesOfOnnx) {
    std::ifstream file(QKV_GOLDEN_DIR "/onnx_rope.json");
    const nlohmann::json cases = nlohmann::json::parse(file).at("cases");
    const StateDict<float> tensors = io::read_safetensors<float>(QKV_GOLDEN_DIR "/onnx_rope.safetensors");
    ASSERT_EQ(cases.size(), 8U);
    for (const nlohmann::json& golden : cases) {
        const std::string name = golden.at("name");
        SCOPED_TRACE(name);
        const auto ids = tensors.find(name + ".positions");
        const std::vector<float> got =
            onnx_rotary_embedding(golden.at("attributes"), tensors.at(name + ".x"), tensors.at(name + ".cos"),
                                  tensors.at(name + ".sin"), ids == tensors.end() ? nullptr : &ids->second);
        const Tensor& expected = tensors.at(name + ".y");
        ASSERT_EQ(static_cast<std::int64_t>(got.size()), expected.numel());
        for (std::size_t i = 0; i < got.size(); ++i) {
            const double want = expected.values()[i];
            // Far inside the case's own tolerance: both are three roundings of f32 from the same numbers below 2.
            ASSERT_NEAR(got[i], want, 4 * 0x1p-23) << i;
            ASSERT_NEAR(got[i], want,
                        golden.at("atol").get<double>() + golden.at("rtol").get<double>() * std::fabs(want))
                << i;
        }
    }
}

}  // namespace
}  // namespace qkv
