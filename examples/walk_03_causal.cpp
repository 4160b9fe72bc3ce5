// Causal attention: the future hidden before the softmax, dropout on the weights after it.
//
// Prints:
//   context of a batch [2, 6, 2]
//    -0.4519  0.2216
//    -0.5874  0.0058
//    -0.6300 -0.0632
//    -0.5675 -0.0843
//    -0.5526 -0.0981
//    -0.5299 -0.1081
//    -0.4519  0.2216
//    -0.5874  0.0058
//    -0.6300 -0.0632
//    -0.5675 -0.0843
//    -0.5526 -0.0981
//    -0.5299 -0.1081
//   softmax over everything [6]
//     0.1636  0.1749  0.1746  0.1612  0.1605  0.1652
//     zeroed afterwards, the row sums to 0.3385
//   -inf before the softmax [1, 6]
//     0.4833  0.5167  0.0000  0.0000  0.0000  0.0000
//   dropout 0.5, first row [1, 2]
//    -0.9038  0.4432
//   after eval() dropout is idle: yes
//   dropout 0.5 of ones [6, 6]
//     2.0000  2.0000  0.0000  2.0000  2.0000  0.0000
//     0.0000  0.0000  0.0000  2.0000  0.0000  2.0000
//     2.0000  2.0000  2.0000  2.0000  0.0000  2.0000
//     0.0000  2.0000  2.0000  0.0000  0.0000  2.0000
//     0.0000  2.0000  0.0000  2.0000  0.0000  2.0000
//     0.0000  2.0000  2.0000  2.0000  2.0000  0.0000
//   mean of a million ones after dropout 0.1: 1.000
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
