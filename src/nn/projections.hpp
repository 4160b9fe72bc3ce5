// Projecting inputs to queries, keys and values, the way back, and writing both into a trace.
#pragma once

#include <array>
#include <string>
#include <utility>

#include "nn/attend.hpp"
#include "qkv/nn/linear.hpp"
#include "qkv/trace.hpp"

namespace qkv::nn {

/// memory's queries, keys and values from its inputs.
template <class T>
void project(const BasicLinear<T>& query, const BasicLinear<T>& key, const BasicLinear<T>& value,
             Remembered<T>& memory) {
    memory.queries = query.forward(memory.query_input, *memory.runtime);
    memory.keys = key.forward(memory.source(), *memory.runtime);
    memory.values = value.forward(memory.source(), *memory.runtime);
}

/// Gradients of the two inputs, [batch, tokens, width] each. In self-attention all is in `queries`.
template <class T>
struct SequenceGradients {
    BasicTensor<T> queries, source;
};

/// From the context back through attention and the three layers, whose gradients grow.
template <class T>
[[nodiscard]] SequenceGradients<T> project_backward(BasicLinear<T>& query, BasicLinear<T>& key, BasicLinear<T>& value,
                                                    const Remembered<T>& memory, const BasicTensor<T>& d_context) {
    const ProjectionGradients<T> d = attend_backward(memory, d_context);
    const Runtime& runtime = *memory.runtime;
    BasicTensor<T> source =
        key.backward(memory.source(), d.keys, runtime, value.backward(memory.source(), d.values, runtime));
    if (memory.source_input) {
        return {query.backward(memory.query_input, d.queries, runtime), std::move(source)};
    }
    return {query.backward(memory.query_input, d.queries, runtime, std::move(source)), {}};
}

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

/// Records the joined context, the output projection and its result.
template <class T>
void record_output(const BasicTensor<T>& context, const BasicLinear<T>& out_proj, const BasicTensor<T>& output,
                   BasicTrace<T>& trace) {
    trace.record("context", context.reshaped(output.shape()));
    trace.record("out_proj.weight", out_proj.weight());
    trace.record("out_proj.bias", *out_proj.bias());
    trace.record("output", output);
}

/// Axes before [rows, columns] in a trace of this pass.
template <class T>
[[nodiscard]] Shape leading_axes(const Remembered<T>& memory, std::int64_t heads) {
    return memory.batched ? Shape{memory.queries.size(0), heads} : Shape{heads};
}

/// The stage's output from memory's context.
template <class T>
[[nodiscard]] BasicTensor<T> project_output(const Remembered<T>& memory, const BasicLinear<T>& out_proj,
                                            BasicTrace<T>* trace) {
    BasicTensor<T> output = without_batch(out_proj.forward(memory.context, *memory.runtime), memory.batched);
    if (trace != nullptr) {
        record_output(memory.context, out_proj, output, *trace);
    }
    return output;
}

/// The stage's output from memory's queries, keys and values.
template <class T>
[[nodiscard]] BasicTensor<T> attend_and_project(Remembered<T>& memory, AttendOptions options,
                                                const BasicLinear<T>& out_proj, const Pass<T>& pass) {
    options.leading = leading_axes(memory, options.heads);
    attend(memory, std::move(options), pass);
    return project_output(memory, out_proj, pass.trace);
}

}  // namespace qkv::nn
