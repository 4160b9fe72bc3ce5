// Self-attention with query, key and value matrices, and what dividing by √d is for.
//
// Prints:
//   raw matrices, context [6, 2]
//     0.2996  0.8053
//     0.3061  0.8210
//     0.3058  0.8203
//     0.2948  0.7939
//     0.2927  0.7891
//     0.2990  0.8040
//   query of journey [1, 2]
//     0.4306  1.4551
//   key of journey [1, 2]
//     0.4433  1.1419
//   scores of journey [1, 6]
//     1.2705  1.8524  1.8111  1.0795  0.5577  1.5440
//   weights of journey [1, 6]
//     0.1500  0.2264  0.2199  0.1311  0.0906  0.1820
//     W_key [3, 2]
//     W_query [3, 2]
//     W_value [3, 2]
//   linear layers, context [6, 2]
//    -0.0739  0.0713
//    -0.0748  0.0703
//    -0.0749  0.0702
//    -0.0760  0.0685
//    -0.0763  0.0679
//    -0.0754  0.0693
//     W_key.weight [2, 3]
//     W_query.weight [2, 3]
//     W_value.weight [2, 3]
//       d  variance of q·k   largest weight  of q·k/√d
//       4              4.1             0.54             0.35
//      64             64.9             0.88             0.37
//    1024           1011.5             0.97             0.37
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "qkv/qkv.hpp"
#include "walk.hpp"

namespace {

namespace nn = qkv::nn;

/// The parameters by name, as PyTorch's state_dict has them.
void print_names(const nn::SelfAttention& attention) {
    for (const auto& [name, tensor] : attention.state_dict()) {
        std::printf("  %s %s\n", name.c_str(), qkv::to_string(tensor.shape()).c_str());
    }
}

/// Random queries against 8 random keys each, all of width d: how far scores spread, and how large the largest weight
/// of a row is on average, without and with the division by √d.
void print_spread(std::int64_t d) {
    constexpr std::int64_t kRows = 1000;
    constexpr std::int64_t kKeys = 8;
    qkv::Generator generator(123);
    const qkv::Tensor queries = generator.randn({kRows, d});
    const qkv::Tensor keys = generator.randn({kRows, kKeys, d});
    double squares = 0;
    double largest[2] = {0, 0};
    for (std::int64_t row = 0; row < kRows; ++row) {
        qkv::Tensor scores({kKeys});
        qkv::Tensor scaled({kKeys});
        for (std::int64_t key = 0; key < kKeys; ++key) {
            for (std::int64_t dim = 0; dim < d; ++dim) {
                scores(key) += queries(row, dim) * keys(row, key, dim);
            }
            scaled(key) = scores(key) / std::sqrt(static_cast<float>(d));
            squares += static_cast<double>(scores(key)) * scores(key);
        }
        const qkv::Tensor weights[2] = {nn::normalised(scores, nn::Normalise::softmax),
                                        nn::normalised(scaled, nn::Normalise::softmax)};
        for (int scale = 0; scale < 2; ++scale) {
            largest[scale] += static_cast<double>(*std::ranges::max_element(weights[scale].values())) / kRows;
        }
    }
    std::printf("%5d %16.1f %16.2f %16.2f\n", static_cast<int>(d), squares / (kRows * kKeys), largest[0], largest[1]);
}

}  // namespace

int main() {
    const qkv::Tensor x = journey();

    qkv::Generator seed_123(123);
    const nn::SelfAttention raw({.d_in = 3, .d_out = 2, .init = nn::Init::uniform}, seed_123);
    qkv::Trace trace;
    print("raw matrices, context", raw.forward(x, {.trace = &trace}));
    print("query of journey", row_of(*trace.find("queries"), 1));
    print("key of journey", row_of(*trace.find("keys"), 1));
    print("scores of journey", row_of(*trace.find("scores"), 1));
    print("weights of journey", row_of(*trace.find("weights"), 1));
    print_names(raw);

    qkv::Generator seed_789(789);
    const nn::SelfAttention linear({.d_in = 3, .d_out = 2}, seed_789);
    print("linear layers, context", linear.forward(x));
    print_names(linear);

    std::printf("    d  variance of q·k   largest weight  of q·k/√d\n");
    for (const std::int64_t d : {4, 64, 1024}) {
        print_spread(d);
    }
}
