// golden/gpt.json: a small GPT's logits, losses, gradients and training against PyTorch's, and a GPT-2 of Hugging Face.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qkv/io.hpp"
#include "qkv/nn.hpp"
#include "support/compare.hpp"
#include "support/digest.hpp"

namespace qkv::nn {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<std::int64_t>;

struct Goldens {
    Json all;
    StateDict<float> tensors;
    StateDict<double> tensors64;
};

const Goldens& goldens() {
    static const Goldens read{.all = Json::parse(std::ifstream(QKV_GOLDEN_DIR "/gpt.json")),
                              .tensors = io::read_safetensors<float>(QKV_GOLDEN_DIR "/gpt.safetensors"),
                              .tensors64 = io::read_safetensors<double>(QKV_GOLDEN_DIR "/gpt.safetensors")};
    return read;
}

GptOptions options_of(const Json& given) {
    return {.vocab_size = given.at("vocab_size"),
            .context_length = given.at("context_length"),
            .emb_dim = given.at("emb_dim"),
            .num_heads = given.at("num_heads"),
            .num_layers = given.at("num_layers"),
            .dropout = given.value("dropout", 0.0),
            .qkv_bias = given.value("qkv_bias", false),
            .tie_weights = given.value("tie_weights", false),
            .gelu = given.value("gelu", "tanh") == "erf" ? Gelu::erf : Gelu::tanh};
}

Ids flat(const Json& rows) {
    Ids ids;
    for (const Json& row : rows) {
        for (const std::int64_t id : row) {
            ids.push_back(id);
        }
    }
    return ids;
}

template <class T>
std::vector<double> doubles(const BasicTensor<T>& tensor) {
    return {tensor.values().begin(), tensor.values().end()};
}

/// The model that PyTorch drew from the same seed, in T; `generator` stands behind its draws.
template <class T>
BasicGpt<T> drawn(const Json& golden, Generator& generator) {
    generator.manual_seed(golden.at("seed").get<std::uint64_t>());
    Gpt model(options_of(golden.at("options")), generator);
    std::vector<const Tensor*> parameters;
    for (const auto& [name, parameter] : model.parameters()) {
        parameters.push_back(&parameter->value);
    }
    EXPECT_EQ(test::fnv1a(parameters), golden.at("parameters_digest").get<std::string>());
    if constexpr (std::is_same_v<T, float>) {
        return model;
    } else {
        StateDict<T> state;
        for (const auto& [name, tensor] : model.state_dict()) {
            state.emplace(name, BasicTensor<T>(tensor.shape(), {tensor.values().begin(), tensor.values().end()}));
        }
        Generator unused;
        BasicGpt<T> same(model.options(), unused);
        same.load_state_dict(state);
        return same;
    }
}

template <class T>
struct Results {
    double loss = 0;
    StateDict<T> tensors;  // logits, gradient.NAME
};

template <class T>
Results<T> run(const Json& golden, const Runtime& runtime = Runtime::serial()) {
    Generator generator;
    BasicGpt<T> model = drawn<T>(golden, generator);
    const Pass<T> pass{.generator = &generator, .runtime = &runtime};
    Results<T> results;
    const auto batch = static_cast<std::int64_t>(golden.at("ids").size());
    BasicTensor<T> logits = model.forward(flat(golden.at("ids")), batch, pass);
    results.tensors.emplace("logits", logits);
    auto [loss, d_logits] = cross_entropy_backward(std::move(logits), flat(golden.at("targets")), {}, runtime);
    results.loss = loss;
    model.backward(std::move(d_logits));
    for (auto& [name, gradient] : model.gradients()) {
        results.tensors.emplace("gradient." + name, gradient);
    }
    return results;
}

class GptGoldens : public testing::TestWithParam<std::size_t> {
protected:
    const Json& golden() { return goldens().all.at("cases").at(GetParam()); }
    std::string name(const std::string& tensor, const char* suffix = "") {
        const std::string kind = tensor.substr(0, tensor.find('.'));
        return golden().at("name").get<std::string>() + "." + kind + suffix + tensor.substr(kind.size());
    }
    /// The names of the case's tensors, without the case's.
    std::vector<std::string> names() {
        const std::string prefix = golden().at("name").get<std::string>() + ".";
        std::vector<std::string> found;
        for (const auto& [key, tensor] : goldens().tensors) {
            if (key.starts_with(prefix) && key.find("64") == std::string::npos) {
                found.push_back(key.substr(prefix.size()));
            }
        }
        return found;
    }
};

TEST_P(GptGoldens, InFloat64AreEqual) {
    const Results<double> found = run<double>(golden());
    const double loss = golden().at("loss64");
    EXPECT_NEAR(found.loss, loss, 1e-13 * loss);
    ASSERT_EQ(found.tensors.size(), names().size());
    for (const std::string& tensor : names()) {
        const Tensor64& exact = goldens().tensors64.at(name(tensor, "64"));
        ASSERT_EQ(found.tensors.at(tensor).shape(), exact.shape()) << tensor;
        EXPECT_LE(support::max_error(doubles(found.tensors.at(tensor)), doubles(exact)), 1e-13) << tensor;
    }
}

TEST_P(GptGoldens, InFloat32KeepTheErrorRule) {
    const Results<float> found = run<float>(golden());
    const double loss = golden().at("loss64");
    const double torch_loss = golden().at("loss");
    EXPECT_LE(std::fabs(found.loss - loss),
              2 * std::fabs(torch_loss - loss) + std::numeric_limits<float>::epsilon() * loss);
    // A gradient is a sum along the whole model, in which large terms may cancel: the largest gradient of all is what
    // its roundings are measured by.
    std::vector<double> gradients;
    for (const std::string& tensor : names()) {
        if (tensor != "logits") {
            const std::vector<double> exact = doubles(goldens().tensors64.at(name(tensor, "64")));
            gradients.insert(gradients.end(), exact.begin(), exact.end());
        }
    }
    for (const std::string& tensor : names()) {
        const std::vector<double> exact = doubles(goldens().tensors64.at(name(tensor, "64")));
        support::expect_rule(tensor.c_str(), doubles(found.tensors.at(tensor)), exact,
                             doubles(goldens().tensors.at(name(tensor))), DType::f32,
                             tensor == "logits" ? exact : gradients);
    }
}

TEST_P(GptGoldens, HaveTheSameBitsForAnyNumberOfThreads) {
    const Results<float> serial = run<float>(golden());
    for (const std::int64_t threads : {2, 3}) {
        const Results<float> found = run<float>(golden(), Runtime(threads));
        EXPECT_EQ(found.loss, serial.loss);
        EXPECT_EQ(found.tensors, serial.tensors);
    }
}

INSTANTIATE_TEST_SUITE_P(Cases, GptGoldens, testing::Range(std::size_t{0}, goldens().all.at("cases").size()),
                         [](const auto& place) { return goldens().all.at("cases").at(place.param).at("name"); });

/// The task of golden/README.md: each token is 3 times the one before it, plus 1, modulo the vocabulary.
struct Sequences {
    Ids ids, targets;
    Sequences(std::int64_t vocab_size, std::int64_t batch, std::int64_t tokens, Generator& generator) {
        const Tensor starts = generator.rand({batch});
        for (const float start : starts.values()) {
            auto token = static_cast<std::int64_t>(start * static_cast<float>(vocab_size));
            for (std::int64_t place = 0; place < tokens; ++place) {
                ids.push_back(token);
                token = (3 * token + 1) % vocab_size;
                targets.push_back(token);
            }
        }
    }
};

/// The losses of a run in T.
template <class T>
std::vector<double> trained(const Json& golden) {
    Generator generator;
    BasicGpt<T> model = drawn<T>(golden, generator);
    AdamW<T> optimizer(model.parameters(), {.lr = golden.at("lr"), .weight_decay = golden.at("weight_decay")});
    const Json& task = goldens().all.at("task");
    const std::int64_t batch = task.at("batch");
    std::vector<double> losses;
    for (int step = 0; step < task.at("steps"); ++step) {
        const Sequences data(model.options().vocab_size, batch, task.at("tokens"), generator);
        auto [loss, d_logits] =
            cross_entropy_backward(model.forward(data.ids, batch, {.generator = &generator}), data.targets);
        losses.push_back(loss);
        model.zero_gradients();
        model.backward(std::move(d_logits));
        optimizer.step();
    }
    return losses;
}

class GptTraining : public testing::TestWithParam<std::size_t> {
protected:
    const Json& golden() { return goldens().all.at("runs").at(GetParam()); }
    std::vector<double> losses(const char* name) { return golden().at(name).get<std::vector<double>>(); }
};

TEST_P(GptTraining, InFloat64HasPyTorchsLosses) {
    const std::vector<double> exact = losses("losses64");
    const std::vector<double> found = trained<double>(golden());
    ASSERT_EQ(found.size(), exact.size());
    for (std::size_t step = 0; step < exact.size(); ++step) {
        EXPECT_NEAR(found[step], exact[step], 1e-9 * exact[step]) << "step " << step;
    }
}

TEST_P(GptTraining, InFloat32IsAsNearToFloat64AsPyTorchs) {
    const std::vector<double> exact = losses("losses64");
    const std::vector<double> torch = losses("losses32");
    const std::vector<double> found = trained<float>(golden());
    ASSERT_EQ(found.size(), exact.size());
    double torch_error = 0;  // the largest so far: at a single step PyTorch's may vanish by luck
    for (std::size_t step = 0; step < exact.size(); ++step) {
        torch_error = std::max(torch_error, std::fabs(torch[step] - exact[step]) / exact[step]);
        const double error = std::fabs(found[step] - exact[step]) / exact[step];
        EXPECT_LE(error, 2 * torch_error + std::numeric_limits<float>::epsilon()) << "step " << step;
    }
}

INSTANTIATE_TEST_SUITE_P(Runs, GptTraining, testing::Range(std::size_t{0}, goldens().all.at("runs").size()),
                         [](const auto& place) { return goldens().all.at("runs").at(place.param).at("name"); });

/// The stored GPT-2 in T, its names changed by `renamed`.
template <class T, class Renamed>
StateDict<T> gpt2_state(const StateDict<T>& tensors, const Renamed& renamed) {
    const std::string prefix = "gpt2.state.";
    StateDict<T> state;
    for (const auto& [name, tensor] : tensors) {
        if (name.starts_with(prefix)) {
            state.emplace(renamed(name.substr(prefix.size())), tensor);
        }
    }
    return state;
}

void expect_gpt2_logits(const StateDict<double>& state, bool tie_weights) {
    const Json& golden = goldens().all.at("gpt2");
    GptOptions options = gpt_options_of(state, golden.at("num_heads"));
    EXPECT_TRUE(options.tie_weights);
    EXPECT_TRUE(options.qkv_bias);
    options.tie_weights = tie_weights;
    Generator generator;
    BasicGpt<double> model(options, generator);
    model.load_state_dict(state);
    model.eval();
    const BasicTensor<double> logits = model.forward(flat(golden.at("ids")), 2);
    const Tensor64& exact = goldens().tensors64.at("gpt2.logits64");
    ASSERT_EQ(logits.shape(), exact.shape());
    EXPECT_LE(support::max_error(doubles(logits), doubles(exact)), 1e-12);
}

TEST(Gpt2, OfHuggingFaceLoads) {
    const auto as_it_is = [](const std::string& name) { return name; };
    StateDict<double> state = gpt2_state(goldens().tensors64, as_it_is);
    for (const bool tied : {true, false}) {
        expect_gpt2_logits(state, tied);
    }
    // As safetensors keeps it: one name for the shared table.
    state.erase("lm_head.weight");
    expect_gpt2_logits(state, true);
    expect_gpt2_logits(state, false);
}

TEST(Gpt2, LoadsUnderTheNamesOfItsBareModelAndWithMaskBuffers) {
    StateDict<double> state = gpt2_state(goldens().tensors64, [](const std::string& name) {
        return name.starts_with("transformer.") ? name.substr(12) : name;
    });
    state.erase("lm_head.weight");
    for (const char* layer : {"h.0", "h.1"}) {
        state.emplace(std::string(layer) + ".attn.bias", Tensor64({1, 1, 7, 7}));
        state.emplace(std::string(layer) + ".attn.masked_bias", Tensor64({1}, {-1e4}));
    }
    expect_gpt2_logits(state, true);
}

TEST(GptFile, HoldsWhatTheTestsAreFor) {
    EXPECT_EQ(goldens().all.at("cases").size(), 5U);
    EXPECT_EQ(goldens().all.at("runs").size(), 3U);
    for (const Json& run : goldens().all.at("runs")) {
        EXPECT_EQ(run.at("losses64").size(), goldens().all.at("task").at("steps"));
        EXPECT_LT(run.at("losses64").back(), run.at("losses64").front().get<double>() / 2);
    }
}

}  // namespace
}  // namespace qkv::nn
