// golden/training.json: CrossAttention learns as PyTorch's does, step for step.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qkv/nn.hpp"
#include "reversal.hpp"
#include "support/digest.hpp"

namespace qkv::nn {
namespace {

using Json = nlohmann::json;

const Json& golden() {
    static const Json all = Json::parse(std::ifstream(QKV_GOLDEN_DIR "/training.json"));
    return all;
}

template <class T>
BasicTensor<T> converted(const Tensor& tensor) {
    return BasicTensor<T>(tensor.shape(), std::vector<T>(tensor.values().begin(), tensor.values().end()));
}

/// One step of the run's optimizer, after clipping where the run clips.
template <class T>
std::function<void()> optimizer_step(const Json& run, const ParameterList<T>& parameters) {
    const double lr = run.at("lr");
    const double weight_decay = run.at("weight_decay");
    if (run.at("optimizer") == "AdamW") {
        return [adamw = AdamW<T>(parameters, {.lr = lr, .weight_decay = weight_decay})]() mutable { adamw.step(); };
    }
    Sgd<T> sgd(parameters, {.lr = lr, .momentum = run.at("momentum"), .weight_decay = weight_decay});
    return [sgd, parameters, max_norm = run.at("max_norm").get<double>()]() mutable {
        (void)clip_gradient_norm(parameters, max_norm);
        sgd.step();
    };
}

/// The losses of a run in T, from the same float32 parameters and sequences.
template <class T>
std::vector<double> trained(const Json& run) {
    Generator generator(run.at("seed").get<std::uint64_t>());
    const CrossAttentionOptions options{.d_query = Reversal::tokens,
                                        .d_source = Reversal::width + Reversal::tokens,
                                        .d_out = Reversal::width,
                                        .dropout = run.at("dropout"),
                                        .num_heads = run.at("num_heads"),
                                        .qkv_bias = run.at("qkv_bias")};
    CrossAttention drawn(options, generator);
    std::vector<const Tensor*> parameters;
    for (const auto& [name, parameter] : drawn.parameters()) {
        parameters.push_back(&parameter->value);
    }
    EXPECT_EQ(test::fnv1a(parameters), run.at("parameters_digest").get<std::string>());
    StateDict<T> state;
    for (const auto& [name, tensor] : drawn.state_dict()) {
        state.emplace(name, converted<T>(tensor));
    }
    Generator unused;
    BasicCrossAttention<T> module(options, unused);
    module.load_state_dict(state);

    const std::function<void()> step_optimizer = optimizer_step(run, module.parameters());
    std::vector<double> losses;
    for (int step = 0; step < golden().at("task").at("steps"); ++step) {
        const Reversal task(generator);
        const BasicTensor<T> output =
            module.forward(converted<T>(task.queries), converted<T>(task.source), {.generator = &generator});
        const auto [loss, d_output] = mean_squared_error(output, converted<T>(task.wanted));
        losses.push_back(loss);
        module.zero_gradients();
        (void)module.backward(d_output);
        step_optimizer();
    }
    return losses;
}

class Training : public testing::TestWithParam<std::size_t> {
protected:
    const Json& run() { return golden().at("runs").at(GetParam()); }
    std::vector<double> losses(const char* name) { return run().at(name).get<std::vector<double>>(); }
};

TEST_P(Training, InFloat64HasPyTorchsLosses) {
    const std::vector<double> exact = losses("losses64");
    const std::vector<double> found = trained<double>(run());
    ASSERT_EQ(found.size(), exact.size());
    for (std::size_t step = 0; step < exact.size(); ++step) {
        EXPECT_NEAR(found[step], exact[step], 1e-9 * exact[step]) << "step " << step;
    }
}

TEST_P(Training, InFloat32IsAsNearToFloat64AsPyTorchs) {
    const std::vector<double> exact = losses("losses64");
    const std::vector<double> torch = losses("losses32");
    const std::vector<double> found = trained<float>(run());
    ASSERT_EQ(found.size(), exact.size());
    // Errors grow from step to step, and at a single one PyTorch's may vanish by luck: what counts is its largest so
    // far. One unit in the last place is beside it because PyTorch's first loss may be right to the last bit.
    double torch_error = 0;
    for (std::size_t step = 0; step < exact.size(); ++step) {
        torch_error = std::max(torch_error, std::fabs(torch[step] - exact[step]) / exact[step]);
        const double error = std::fabs(found[step] - exact[step]) / exact[step];
        EXPECT_LE(error, 2 * torch_error + std::numeric_limits<float>::epsilon()) << "step " << step;
    }
}

INSTANTIATE_TEST_SUITE_P(Runs, Training, testing::Range(std::size_t{0}, golden().at("runs").size()),
                         [](const auto& place) { return golden().at("runs").at(place.param).at("name"); });

TEST(TrainingFile, DescribesTheTaskOfTheExample) {
    const Json& task = golden().at("task");
    EXPECT_EQ(task.at("batch"), Reversal::batch);
    EXPECT_EQ(task.at("tokens"), Reversal::tokens);
    EXPECT_EQ(task.at("width"), Reversal::width);
    EXPECT_EQ(golden().at("runs").size(), 3U);
    for (const Json& run : golden().at("runs")) {
        EXPECT_EQ(run.at("losses64").size(), task.at("steps"));
        EXPECT_LT(run.at("losses64").back(), run.at("losses64").front().get<double>() / 2);
    }
}

}  // namespace
}  // namespace qkv::nn
