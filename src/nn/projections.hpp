// Writing a stage's projections into a trace.
#pragma once

#include <array>
#include <string>
#include <utility>

#include "qkv/nn/linear.hpp"
#include "qkv/trace.hpp"

namespace qkv::nn {

/// Records W_query, W_key, W_value as PyTorch keeps them, [d_out, d_in], with W_query.bias and so on where there is
/// one.
template <class T>
void record_layers(const std::array<const BasicLinear<T>*, 3>& query_key_value, BasicTrace<T>& trace) {
    const std::array<std::string, 3> names{"W_query", "W_key", "W_value"};
    for (std::size_t i = 0; i < names.size(); ++i) {
        const BasicLinear<T>& layer = *query_key_value[i];
        trace.record(names[i], layer.weight());
        if (layer.bias()) {
            trace.record(names[i] + ".bias", *layer.bias());
        }
    }
}

/// Records queries, keys and values [N, tokens, head_dim] as [leading..., tokens, head_dim].
template <class T>
void record_heads(const BasicTensor<T>& queries, const BasicTensor<T>& keys, const BasicTensor<T>& values,
                  const Shape& leading, BasicTrace<T>& trace) {
    const auto record = [&](const char* name, const BasicTensor<T>& tensor) {
        Shape shape = leading;
        shape.insert(shape.end(), tensor.shape().begin() + 1, tensor.shape().end());
        trace.record(name, tensor.reshaped(std::move(shape)));
    };
    record("queries", queries);
    record("keys", keys);
    record("values", values);
}

/// Records the joined context, the output projection and its result.
template <class T>
void record_output(const BasicTensor<T>& context, const BasicLinear<T>& out_proj, const BasicTensor<T>& output,
                   BasicTrace<T>& trace) {
    trace.record("context", context.reshaped(output.shape()));
    trace.record("out_proj.weight", out_proj.weight());
    trace.record("out_proj.bias", *out_proj.bias());
    trace.record("output", output);
}

}  // namespace qkv::nn
