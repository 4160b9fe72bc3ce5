// Causal attention: the future hidden before the softmax, dropout on the weights after it.
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include "qkv/qkv.hpp"
#include "walk.hpp"

namespace {

namespace nn = qkv::nn;

/// `x` twice: a batch of two equal sequences.
qkv::Tensor batch_of_two(const qkv::Tensor& x) {
    std::vector<float> values(x.values().begin(), x.values().end());
    values.insert(values.end(), x.values().begin(), x.values().end());
    return qkv::Tensor({2, x.size(0), x.size(1)}, std::move(values));
}

nn::CausalAttention causal(double dropout, qkv::Generator& generator) {
    return nn::CausalAttention({.d_in = 3, .d_out = 2, .context_length = 6, .dropout = dropout}, generator);
}

}  // namespace

int main() {
    const qkv::Tensor batch = batch_of_two(journey());

    qkv::Generator generator(123);
    const nn::CausalAttention attention = causal(0.0, generator);
    qkv::Trace trace;
    print("context of a batch", attention.forward(batch, {.trace = &trace}));

    // The row of "journey" (sequence 0, row 1), hidden in two ways.
    const auto scaled = trace.find("scaled")->row(1);
    const qkv::Tensor everything =
        nn::normalised(qkv::Tensor({6}, {scaled.begin(), scaled.end()}), nn::Normalise::softmax);
    print("softmax over everything", everything);
    std::printf("  zeroed afterwards, the row sums to %.4f\n", static_cast<double>(everything(0) + everything(1)));
    print("-inf before the softmax", row_of(*trace.find("weights"), 1));

    // Dropout in training: the same parameters, then a mask drawn from the same stream.
    qkv::Generator again(123);
    nn::CausalAttention training = causal(0.5, again);
    const qkv::Tensor dropped = training.forward(batch, {.generator = &again});
    print("dropout 0.5, first row", row_of(dropped, 0));
    training.eval();
    std::printf("after eval() dropout is idle: %s\n",
                training.forward(batch) == attention.forward(batch) ? "yes" : "no");

    // What dropout multiplies by: 0, or 1/(1−p) = 2.
    qkv::Tensor keep({6, 6});
    qkv::Generator(123).bernoulli_(keep.values(), 0.5);
    for (float& scale : keep.values()) {
        scale *= 2.0F;
    }
    print("dropout 0.5 of ones", keep);

    // On average nothing is lost: a million ones through dropout 0.1.
    std::vector<float> many(1'000'000);
    qkv::Generator(123).bernoulli_(std::span(many), 0.9);
    std::printf("mean of a million ones after dropout 0.1: %.3f\n",
                std::accumulate(many.begin(), many.end(), 0.0) / 0.9 / 1e6);
}
