// Many heads: single heads side by side, then one projection that is split, and that both are the same thing.
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
