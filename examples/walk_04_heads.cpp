// Many heads: single heads side by side, then one projection that is split, and that both are the same thing.
//
// Prints:
//   wrapper [6, 4]
//    -0.4519  0.2216  0.4772  0.1063
//    -0.5874  0.0058  0.5891  0.3257
//    -0.6300 -0.0632  0.6202  0.3860
//    -0.5675 -0.0843  0.5478  0.3589
//    -0.5526 -0.0981  0.5321  0.3428
//    -0.5299 -0.1081  0.5077  0.3493
//   multi-head [6, 2]
//     0.3190  0.4858
//     0.2943  0.3897
//     0.2856  0.3593
//     0.2693  0.3873
//     0.2639  0.3928
//     0.2575  0.4028
//   queries, a block of rows a head [2, 6, 1]
//    -0.3536
//    -0.3021
//    -0.3015
//    -0.1353
//    -0.2052
//    -0.1542
//     0.3965
//    -0.0289
//    -0.0232
//    -0.0978
//     0.0870
//    -0.1499
//     W_key.weight [2, 3]
//     W_query.weight [2, 3]
//     W_value.weight [2, 3]
//     mask [6, 6]
//     out_proj.bias [2]
//     out_proj.weight [2, 2]
//   the wrapper of the pieces gives the same context: yes
//   view, then transpose [2, 2, 2]
//     0.0000  1.0000
//    10.0000 11.0000
//     2.0000  3.0000
//    12.0000 13.0000
//   view at once: head 0 is token 0, head 1 is token 1 [2, 2, 2]
//     0.0000  1.0000
//     2.0000  3.0000
//    10.0000 11.0000
//    12.0000 13.0000
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

#include "qkv/qkv.hpp"
#include "walk.hpp"

namespace {

namespace nn = qkv::nn;

/// Rows `begin` to `end` of a matrix.
qkv::Tensor rows(const qkv::Tensor& x, std::int64_t begin, std::int64_t end) {
    const auto values = x.values().subspan(static_cast<std::size_t>(begin * x.size(1)),
                                           static_cast<std::size_t>((end - begin) * x.size(1)));
    return qkv::Tensor({end - begin, x.size(1)}, {values.begin(), values.end()});
}

}  // namespace

int main() {
    const qkv::Tensor x = journey();

    // Two heads of width 2 side by side: 4 columns.
    qkv::Generator generator(123);
    const nn::MultiHeadAttentionWrapper wrapper({.d_in = 3, .d_out = 2, .context_length = 6, .num_heads = 2},
                                                generator);
    print("wrapper", wrapper.forward(x));

    // One projection to width 2, split into two heads of width 1, joined, projected once more.
    generator.manual_seed(123);
    const nn::MultiHeadAttention split({.d_in = 3, .d_out = 2, .context_length = 6, .num_heads = 2}, generator);
    qkv::Trace trace;
    print("multi-head", split.forward(x, {.trace = &trace}));
    print("queries, a block of rows a head", *trace.find("queries"));
    for (const auto& [name, tensor] : split.state_dict()) {
        std::printf("  %s %s\n", name.c_str(), qkv::to_string(tensor.shape()).c_str());
    }

    // Head h of the split is a single head whose layers are rows h·head_dim, … of the big ones.
    qkv::StateDict<float> pieces;
    const qkv::StateDict<float> whole = split.state_dict();
    for (std::int64_t head = 0; head < 2; ++head) {
        for (const char* layer : {"W_query.weight", "W_key.weight", "W_value.weight"}) {
            pieces["heads." + std::to_string(head) + "." + layer] = rows(whole.at(layer), head, head + 1);
        }
    }
    nn::MultiHeadAttentionWrapper same({.d_in = 3, .d_out = 1, .context_length = 6, .num_heads = 2}, generator);
    same.load_state_dict(pieces);
    std::printf("the wrapper of the pieces gives the same context: %s\n",
                same.forward(x) == *trace.find("context") ? "yes" : "no");

    // Two tokens, two heads of width 2; element = 10 · token + column. View and transpose keeps a token's columns in
    // its own row; a view to [heads, tokens, head_dim] at once does not.
    const qkv::Tensor tokens({2, 4}, {0, 1, 2, 3, 10, 11, 12, 13});
    const qkv::Tensor viewed = tokens.reshaped({2, 2, 2});  // [tokens, heads, head_dim]
    qkv::Tensor heads_first({2, 2, 2});
    for (int head = 0; head < 2; ++head) {
        for (int token = 0; token < 2; ++token) {
            std::ranges::copy(viewed.row(2 * token + head), heads_first.row(2 * head + token).begin());
        }
    }
    print("view, then transpose", heads_first);
    print("view at once: head 0 is token 0, head 1 is token 1", tokens.reshaped({2, 2, 2}));
}
