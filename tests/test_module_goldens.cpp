// Every case of golden/modules.json: the modules against what PyTorch computes from the same seeds and files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "qkv/io.hpp"
#include "qkv/nn.hpp"
#include "support/digest.hpp"

namespace qkv::nn {
namespace {

using Json = nlohmann::json;

/// What a case holds and what the modules make of it, in T.
template <class T>
struct Inputs {
    BasicTensor<T> first;   // x or query
    BasicTensor<T> second;  // source, where there is one
    std::vector<bool> source_mask;
};

struct Goldens {
    Json cases;
    StateDict<float> tensors;
    StateDict<double> tensors64;
};

const Goldens& goldens() {
    static const Goldens all = [] {
        std::ifstream file(QKV_GOLDEN_DIR "/modules.json");
        constexpr const char* kTensors = QKV_GOLDEN_DIR "/modules.safetensors";
        return Goldens{.cases = Json::parse(file).at("cases"),
                       .tensors = io::read_safetensors<float>(kTensors),
                       .tensors64 = io::read_safetensors<double>(kTensors)};
    }();
    return all;
}

template <class To, class From>
BasicTensor<To> converted(const BasicTensor<From>& tensor) {
    return BasicTensor<To>(tensor.shape(), std::vector<To>(tensor.values().begin(), tensor.values().end()));
}

/// The module of a case with one way to call them all.
template <class T>
class AnyModule {
public:
    AnyModule(const Json& golden, Generator& generator) : kind_(golden.at("module")) {
        const Json& options = golden.at("options");
        const auto number = [&](const char* name) { return options.at(name).get<std::int64_t>(); };
        const bool bias = options.value("qkv_bias", false);
        const double dropout = options.value("dropout", 0.0);
        if (kind_ == "SelfAttentionMatrices" || kind_ == "SelfAttentionLinear") {
            const Init init = kind_ == "SelfAttentionLinear" ? Init::linear : Init::uniform;
            self_.emplace(
                SelfAttentionOptions{.d_in = number("d_in"), .d_out = number("d_out"), .init = init, .qkv_bias = bias},
                generator);
        } else if (kind_ == "CausalAttention") {
            causal_.emplace(CausalAttentionOptions{.d_in = number("d_in"),
                                                   .d_out = number("d_out"),
                                                   .context_length = number("context_length"),
                                                   .dropout = dropout,
                                                   .qkv_bias = bias},
                            generator);
        } else if (kind_ == "CrossAttention") {
            cross_.emplace(CrossAttentionOptions{.d_query = number("d_query"),
                                                 .d_source = number("d_source"),
                                                 .d_out = number("d_out"),
                                                 .dropout = dropout,
                                                 .num_heads = number("num_heads"),
                                                 .qkv_bias = bias},
                           generator);
        } else if (kind_ == "TorchMultiHead") {
            make_like_torch(golden, generator);
        } else {
            const MultiHeadAttentionOptions heads{.d_in = number("d_in"),
                                                  .d_out = number("d_out"),
                                                  .context_length = number("context_length"),
                                                  .dropout = dropout,
                                                  .num_heads = number("num_heads"),
                                                  .qkv_bias = bias};
            if (kind_ == "MultiHeadAttentionWrapper") {
                wrapper_.emplace(heads, generator);
            } else {
                multi_head_.emplace(heads, generator);
            }
        }
    }

    [[nodiscard]] BasicModule<T>& module() {
        if (self_) {
            return *self_;
        }
        if (causal_) {
            return *causal_;
        }
        if (wrapper_) {
            return *wrapper_;
        }
        if (multi_head_) {
            return *multi_head_;
        }
        return cross_.value();
    }

    [[nodiscard]] BasicTensor<T> forward(const Inputs<T>& inputs, const Pass<T>& pass) const {
        if (self_) {
            return self_->forward(inputs.first, pass);
        }
        if (causal_) {
            return causal_->forward(inputs.first, pass);
        }
        if (wrapper_) {
            return wrapper_->forward(inputs.first, pass);
        }
        if (multi_head_) {
            return multi_head_->forward(inputs.first, pass);
        }
        return cross_.value().forward(inputs.first, inputs.second, pass, inputs.source_mask);
    }

private:
    /// torch.nn.MultiheadAttention, which both multi-head stages can stand in for.
    void make_like_torch(const Json& golden, Generator& generator) {
        const Json& options = golden.at("options");
        const std::int64_t width = options.at("embed_dim");
        const std::int64_t heads = options.at("num_heads");
        const double dropout = options.at("dropout");
        const bool bias = options.at("bias");
        if (options.at("causal")) {
            multi_head_.emplace(MultiHeadAttentionOptions{.d_in = width,
                                                          .d_out = width,
                                                          .context_length = golden.at("inputs").at("query").at(1),
                                                          .dropout = dropout,
                                                          .num_heads = heads,
                                                          .qkv_bias = bias},
                                generator);
        } else {
            cross_.emplace(CrossAttentionOptions{.d_query = width,
                                                 .d_source = options.at("kdim"),
                                                 .d_out = width,
                                                 .dropout = dropout,
                                                 .num_heads = heads,
                                                 .qkv_bias = bias},
                           generator);
        }
    }

    std::string kind_;
    std::optional<BasicSelfAttention<T>> self_;
    std::optional<BasicCausalAttention<T>> causal_;
    std::optional<BasicMultiHeadAttentionWrapper<T>> wrapper_;
    std::optional<BasicMultiHeadAttention<T>> multi_head_;
    std::optional<BasicCrossAttention<T>> cross_;
};

/// Inputs in the order in which they are drawn: x, or query before source.
Inputs<float> drawn_inputs(const Json& golden, Generator& generator) {
    const Json& shapes = golden.at("inputs");
    Inputs<float> inputs;
    inputs.first = generator.rand(shapes.at(shapes.contains("x") ? "x" : "query").get<Shape>());
    if (shapes.contains("source")) {
        inputs.second = generator.rand(shapes.at("source").get<Shape>());
    }
    if (golden.contains("key_padding_mask")) {
        for (const Json& sequence : golden.at("key_padding_mask")) {
            for (const Json& hidden : sequence) {
                inputs.source_mask.push_back(!hidden.get<bool>());  // PyTorch's true hides
            }
        }
    }
    return inputs;
}

std::string name_of(const Json& golden) { return golden.at("name"); }

/// The tensors of the case `name` whose own names begin with "state.".
StateDict<float> stored_state(const std::string& name) {
    const std::string prefix = name + ".state.";
    StateDict<float> state;
    for (const auto& [key, tensor] : goldens().tensors) {
        if (key.starts_with(prefix)) {
            state.emplace(key.substr(prefix.size()), tensor);
        }
    }
    return state;
}

/// A wrapper records [heads, batch, rows, columns]; the file holds [batch, heads, rows, columns].
template <class T>
BasicTensor<T> batch_before_heads(const BasicTensor<T>& tensor) {
    const std::int64_t heads = tensor.size(0);
    const std::int64_t batch = tensor.size(1);
    const std::int64_t matrix = tensor.size(2) * tensor.size(3);
    BasicTensor<T> swapped({batch, heads, tensor.size(2), tensor.size(3)});
    for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t head = 0; head < heads; ++head) {
            std::copy_n(tensor.data() + (head * batch + b) * matrix, matrix,
                        swapped.data() + (b * heads + head) * matrix);
        }
    }
    return swapped;
}

/// What one run leaves: "output", "weights" and "dropped_weights", as the file names them.
template <class T>
StateDict<T> results(const Json& golden, const AnyModule<T>& module, const Inputs<T>& inputs, Generator& generator) {
    BasicTrace<T> trace;
    StateDict<T> found{{"output", module.forward(inputs, {.generator = &generator, .trace = &trace})}};
    for (const char* name : {"weights", "dropped_weights"}) {
        if (const BasicTensor<T>* tensor = trace.find(name); tensor != nullptr) {
            const bool wrapper = golden.at("module") == "MultiHeadAttentionWrapper";
            found.emplace(name, wrapper ? batch_before_heads(*tensor) : *tensor);
        }
    }
    return found;
}

template <class T>
double largest_error(const BasicTensor<T>& tensor, const Tensor64& exact) {
    double largest = 0;
    for (std::int64_t i = 0; i < exact.numel(); ++i) {
        largest = std::max(largest, std::fabs(static_cast<double>(tensor.data()[i]) - exact.data()[i]));
    }
    return largest;
}

double largest_value(const Tensor64& tensor) {
    double largest = 0;
    for (const double value : tensor.values()) {
        largest = std::max(largest, std::fabs(value));
    }
    return largest;
}

void expect_near_torch(const Tensor& found, const std::string& name) {
    const Tensor& torch = goldens().tensors.at(name);
    const Tensor64& exact = goldens().tensors64.at(name + "64");
    ASSERT_EQ(found.shape(), torch.shape()) << name;
    for (std::int64_t i = 0; i < torch.numel(); ++i) {
        const float expected = torch.data()[i];
        ASSERT_NEAR(found.data()[i], expected, 1e-6 * std::max(1.0F, std::fabs(expected))) << name << ", element " << i;
    }
    // A correctly rounded result is half a unit in the last place off, and a result of two roundings one. In a small
    // tensor PyTorch's may be nearer than that by luck, so one unit is allowed beside twice its error.
    const double floor = std::numeric_limits<float>::epsilon() * largest_value(exact);
    EXPECT_LE(largest_error(found, exact), 2 * largest_error(torch, exact) + floor) << name;
}

/// The double module on the same float32 inputs and parameters, with the same weights dropped.
StateDict<double> results_in_double(const Json& golden, const StateDict<float>& state, const Inputs<float>& inputs,
                                    Generator dropout) {
    Generator unused;
    AnyModule<double> module(golden, unused);
    StateDict<double> state64;
    for (const auto& [name, tensor] : state) {
        state64.emplace(name, converted<double>(tensor));
    }
    module.module().load_state_dict(state64);
    const Inputs<double> inputs64{converted<double>(inputs.first), converted<double>(inputs.second),
                                  inputs.source_mask};
    return results(golden, module, inputs64, dropout);
}

class ModuleGoldens : public testing::TestWithParam<std::size_t> {};

TEST_P(ModuleGoldens, AgreeWithPyTorch) {
    const Json& golden = goldens().cases.at(GetParam());
    const std::string name = name_of(golden);
    SCOPED_TRACE(name);
    Generator generator(golden.at("seed").get<std::uint64_t>());
    const Inputs<float> inputs = drawn_inputs(golden, generator);
    std::vector<const Tensor*> drawn{&inputs.first};
    if (!inputs.second.empty()) {
        drawn.push_back(&inputs.second);
    }
    EXPECT_EQ(test::fnv1a(drawn), golden.at("inputs_digest").get<std::string>());

    AnyModule<float> module(golden, generator);
    const StateDict<float> stored = stored_state(name);
    if (!stored.empty()) {
        module.module().load_state_dict(stored);
    } else {
        std::vector<const Tensor*> parameters;
        for (const auto& [parameter_name, parameter] : module.module().parameters()) {
            parameters.push_back(&parameter->value);
        }
        EXPECT_EQ(test::fnv1a(parameters), golden.at("parameters_digest").get<std::string>());
    }
    if (golden.contains("dropout_seed")) {
        generator.manual_seed(golden.at("dropout_seed").get<std::uint64_t>());
    }
    const Generator before_dropout = generator;
    const StateDict<float> found = results(golden, module, inputs, generator);
    const StateDict<double> found64 = results_in_double(golden, module.module().state_dict(), inputs, before_dropout);

    for (const std::string tensor : golden.at("tensors")) {
        if (tensor.starts_with("state.") || tensor.ends_with("64")) {
            continue;
        }
        ASSERT_TRUE(found.contains(tensor)) << tensor;
        const std::string full_name = std::string(name).append(".").append(tensor);
        expect_near_torch(found.at(tensor), full_name);
        const Tensor64& exact = goldens().tensors64.at(full_name + "64");
        ASSERT_EQ(found64.at(tensor).shape(), exact.shape());
        EXPECT_LE(largest_error(found64.at(tensor), exact), 1e-12 * std::max(1.0, largest_value(exact))) << tensor;
    }
}

INSTANTIATE_TEST_SUITE_P(Modules, ModuleGoldens, testing::Range(std::size_t{0}, goldens().cases.size()),
                         [](const auto& place) { return name_of(goldens().cases.at(place.param)); });

TEST(ModuleGoldensFile, HoldsEveryModuleAndEveryTensorBelongsToACase) {
    std::vector<std::string> kinds;
    std::size_t named = 0;
    for (const Json& golden : goldens().cases) {
        kinds.push_back(golden.at("module"));
        named += golden.at("tensors").size();
    }
    EXPECT_EQ(named, goldens().tensors.size());
    for (const char* kind : {"SelfAttentionMatrices", "SelfAttentionLinear", "CausalAttention",
                             "MultiHeadAttentionWrapper", "MultiHeadAttention", "CrossAttention", "TorchMultiHead"}) {
        EXPECT_GE(std::ranges::count(kinds, kind), 10) << kind;
    }
}

}  // namespace
}  // namespace qkv::nn
