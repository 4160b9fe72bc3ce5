// gpt_tool IN OUT HEADS GELU DROPOUT SEED: one forward and backward of a Gpt in float64, for readers in Python.
// IN holds a state_dict as state.*, ids and targets [batch, tokens]; OUT gets state.*, logits, loss and gradient.*.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "qkv/io.hpp"
#include "qkv/nn.hpp"

namespace {

std::vector<std::int64_t> integers(const qkv::Tensor64& tensor) {
    return {tensor.values().begin(), tensor.values().end()};
}

void run(char** arguments) {
    using namespace qkv::nn;
    const std::string prefix = "state.";
    const qkv::StateDict<double> given = qkv::io::read_safetensors<double>(arguments[0]);
    qkv::StateDict<double> state;
    for (const auto& [name, tensor] : given) {
        if (name.starts_with(prefix)) {
            state.emplace(name.substr(prefix.size()), tensor);
        }
    }
    GptOptions options = gpt_options_of(state, std::stoll(arguments[2]));
    options.gelu = std::string(arguments[3]) == "erf" ? Gelu::erf : Gelu::tanh;
    options.dropout = std::stod(arguments[4]);
    qkv::Generator generator;
    BasicGpt<double> model(options, generator);
    model.load_state_dict(state);
    generator.manual_seed(std::stoull(arguments[5]));

    const qkv::Tensor64& ids = given.at("ids");
    const qkv::Tensor64 logits = model.forward(integers(ids), ids.size(0), {.generator = &generator});
    auto [loss, d_logits] = cross_entropy_backward(logits, integers(given.at("targets")));
    model.backward(std::move(d_logits));
    qkv::StateDict<double> results{{"logits", logits}, {"loss", qkv::Tensor64({}, {loss})}};
    for (const auto& [name, tensor] : model.state_dict()) {
        results.emplace(prefix + name, tensor);
    }
    for (const auto& [name, tensor] : model.gradients()) {
        results.emplace("gradient." + name, tensor);
    }
    qkv::io::write_safetensors(arguments[1], results);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 7) {
        (void)std::fprintf(stderr, "usage: gpt_tool IN OUT HEADS GELU DROPOUT SEED\n");
        return 2;
    }
    try {
        run(argv + 1);
    } catch (const std::exception& error) {
        (void)std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
