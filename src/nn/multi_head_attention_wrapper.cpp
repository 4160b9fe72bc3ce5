#include <algorithm>
#include <functional>
#include <utility>

#include "core/check.hpp"
#include "nn/attend.hpp"
#include "qkv/nn/multi_head_attention.hpp"

namespace qkv::nn {

namespace {

/// [..., a], [..., b] → [..., a + b], all of the same leading shape.
template <class T>
BasicTensor<T> concatenated(const std::vector<BasicTensor<T>>& parts) {
    Shape shape = parts.front().shape();
    shape.back() = 0;
    for (const BasicTensor<T>& part : parts) {
        shape.back() += part.size(-1);
    }
    BasicTensor<T> joined(shape);
    const std::int64_t rows = parts.front().numel() / std::max<std::int64_t>(parts.front().size(-1), 1);
    for (std::int64_t row = 0; row < rows; ++row) {
        auto to = joined.row(row).begin();
        for (const BasicTensor<T>& part : parts) {
            to = std::ranges::copy(part.row(row), to).out;
        }
    }
    return joined;
}

/// Tensors of one shape → [number of them, shape...].
template <class T>
BasicTensor<T> stacked(const std::vector<BasicTensor<T>>& parts) {
    Shape shape = parts.front().shape();
    shape.insert(shape.begin(), static_cast<std::int64_t>(parts.size()));
    BasicTensor<T> all(std::move(shape));
    auto to = all.values().begin();
    for (const BasicTensor<T>& part : parts) {
        to = std::ranges::copy(part.values(), to).out;
    }
    return all;
}

/// Every head on x, their contexts side by side. Heads that are not const remember what backward needs.
template <class Heads, class T>
BasicTensor<T> forward_heads(Heads& heads, const BasicTensor<T>& x, const Pass<T>& pass) {
    std::vector<BasicTensor<T>> contexts;
    std::vector<BasicTrace<T>> traces(heads.size());
    for (std::size_t head = 0; head < heads.size(); ++head) {
        BasicTrace<T>* trace = pass.trace != nullptr ? &traces[head] : nullptr;
        contexts.push_back(
            heads[head].forward(x, {.generator = pass.generator, .trace = trace, .runtime = pass.runtime}));
    }
    BasicTensor<T> context = concatenated(contexts);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", x);
        // Every head wrote down the same names; show them stacked, [heads, ...].
        for (const auto& [name, first] : traces.front().entries()) {
            if (name == "inputs" || name == "context") {
                continue;
            }
            std::vector<BasicTensor<T>> of_heads;
            of_heads.reserve(traces.size());
            for (const BasicTrace<T>& trace : traces) {
                of_heads.push_back(*trace.find(name));
            }
            pass.trace->record(name, stacked(of_heads));
        }
        pass.trace->record("context", context);
    }
    return context;
}

}  // namespace

template <class T>
BasicMultiHeadAttentionWrapper<T>::BasicMultiHeadAttentionWrapper(const MultiHeadAttentionOptions& options,
                                                                  Generator& generator) {
    if (options.num_heads < 1) {
        fail(ErrorCode::invalid_argument, "num_heads is ", options.num_heads, "; expected 1 or more");
    }
    if (options.rope) {
        fail(ErrorCode::unsupported,
             "rope is not for the wrapper, which shows heads as single ones; expected none, or "
             "MultiHeadAttention");
    }
    for (std::int64_t head = 0; head < options.num_heads; ++head) {
        heads_.emplace_back(CausalAttentionOptions{.d_in = options.d_in,
                                                   .d_out = options.d_out,
                                                   .context_length = options.context_length,
                                                   .dropout = options.dropout,
                                                   .qkv_bias = options.qkv_bias},
                            generator);
    }
}

template <class T>
BasicTensor<T> BasicMultiHeadAttentionWrapper<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    return forward_heads(heads_, x, pass);
}

template <class T>
BasicTensor<T> BasicMultiHeadAttentionWrapper<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) {
    BasicTensor<T> context = forward_heads(heads_, x, pass);
    if (this->training()) {
        output_shape_ = context.shape();
    }
    return context;
}

template <class T>
BasicTensor<T> BasicMultiHeadAttentionWrapper<T>::backward(const BasicTensor<T>& d_output) {
    check_remembered(output_shape_.has_value());
    check_gradient(d_output, *output_shape_);
    const std::int64_t width = heads_.front().options().d_out;
    const auto count = static_cast<std::int64_t>(heads_.size());
    Shape shape = d_output.shape();
    shape.back() = width;
    BasicTensor<T> d_x;
    for (std::int64_t head = 0; head < count; ++head) {
        BasicTensor<T> d_context(shape);  // this head's columns of d_output
        for (std::int64_t row = 0; row < d_output.numel() / (width * count); ++row) {
            std::ranges::copy(
                d_output.row(row).subspan(static_cast<std::size_t>(head * width), static_cast<std::size_t>(width)),
                d_context.row(row).begin());
        }
        BasicTensor<T> d_input = heads_[static_cast<std::size_t>(head)].backward(d_context);
        if (head == 0) {
            d_x = std::move(d_input);
        } else {
            std::ranges::transform(d_x.values(), d_input.values(), d_x.values().begin(), std::plus<>());
        }
    }
    return d_x;
}

template <class T>
void BasicMultiHeadAttentionWrapper<T>::visit_children(const typename BasicModule<T>::ChildVisitor& visit) {
    for (std::size_t head = 0; head < heads_.size(); ++head) {
        visit("heads." + std::to_string(head), heads_[head]);
    }
}

template class BasicMultiHeadAttentionWrapper<float>;
template class BasicMultiHeadAttentionWrapper<double>;

}  // namespace qkv::nn
