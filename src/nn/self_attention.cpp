#include "qkv/nn/self_attention.hpp"

#include <array>
#include <utility>

#include "core/check.hpp"
#include "core/matrix_product.hpp"
#include "nn/attention_steps.hpp"
#include "nn/projections.hpp"

namespace qkv::nn {

template <class T>
BasicSelfAttention<T>::BasicSelfAttention(const SelfAttentionOptions& options, Generator& generator)
    : options_(options) {
    if (options.d_in < 1 || options.d_out < 1) {
        fail(ErrorCode::invalid_argument, "d_in is ", options.d_in, " and d_out ", options.d_out,
             "; expected 1 or more");
    }
    if (options.init == Init::uniform) {
        if (options.qkv_bias) {
            fail(ErrorCode::invalid_argument, "qkv_bias needs linear layers; raw matrices have no bias");
        }
        // Braces draw from left to right: query, key, value.
        const Shape shape{options.d_in, options.d_out};
        raw_ = RawMatrices{generator.rand<T>(shape), generator.rand<T>(shape), generator.rand<T>(shape)};
    } else {
        linear_ = Layers{BasicLinear<T>(options.d_in, options.d_out, options.qkv_bias, generator),
                         BasicLinear<T>(options.d_in, options.d_out, options.qkv_bias, generator),
                         BasicLinear<T>(options.d_in, options.d_out, options.qkv_bias, generator)};
    }
}

template <class T>
BasicTensor<T> BasicSelfAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    const bool batched = x.rank() == 3;
    const BasicTensor<T> inputs = with_batch(x, options_.d_in, "input");
    const auto project = [&](const BasicTensor<T>& matrix) {  // x · W  [batch, tokens, d_out]
        BasicTensor<T> projected({inputs.size(0), inputs.size(1), options_.d_out});
        multiply(inputs.data(), matrix.data(), projected.data(), inputs.size(0) * inputs.size(1), options_.d_out,
                 options_.d_in);
        return projected;
    };
    const BasicTensor<T> queries = raw_ ? project(raw_->query) : linear_->query.forward(inputs);
    const BasicTensor<T> keys = raw_ ? project(raw_->key) : linear_->key.forward(inputs);
    const BasicTensor<T> values = raw_ ? project(raw_->value) : linear_->value.forward(inputs);
    const AttentionSteps<T> steps = attention_steps<T>(queries, keys, values, {}, {}, nullptr);
    BasicTensor<T> context = without_batch(steps.context, batched);
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", x);
        if (raw_) {
            pass.trace->record("W_query", raw_->query);
            pass.trace->record("W_key", raw_->key);
            pass.trace->record("W_value", raw_->value);
        } else {
            record_layers<T>({&linear_->query, &linear_->key, &linear_->value}, *pass.trace);
        }
        const Shape leading = batched ? Shape{x.size(0)} : Shape{};
        record_heads(queries, keys, values, leading, *pass.trace);
        record_steps(steps, leading, *pass.trace);
        pass.trace->record("context", context);
    }
    return context;
}

template <class T>
void BasicSelfAttention<T>::visit_parameters(const typename BasicModule<T>::Visitor& visit) {
    if (raw_) {
        visit("W_query", raw_->query);
        visit("W_key", raw_->key);
        visit("W_value", raw_->value);
    } else {
        linear_->query.visit_parameters("W_query", visit);
        linear_->key.visit_parameters("W_key", visit);
        linear_->value.visit_parameters("W_value", visit);
    }
}

template class BasicSelfAttention<float>;
template class BasicSelfAttention<double>;

}  // namespace qkv::nn
