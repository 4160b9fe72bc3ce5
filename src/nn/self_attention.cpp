#include "qkv/nn/self_attention.hpp"

#include <memory>
#include <utility>

#include "core/check.hpp"
#include "core/matrix_product.hpp"
#include "nn/attend.hpp"
#include "nn/projections.hpp"
#include "nn/rows.hpp"

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
        raw_ = RawMatrices{Parameter<T>(generator.rand<T>(shape)), Parameter<T>(generator.rand<T>(shape)),
                           Parameter<T>(generator.rand<T>(shape))};
    } else {
        linear_ = Layers{BasicLinear<T>(options.d_in, options.d_out, options.qkv_bias, generator),
                         BasicLinear<T>(options.d_in, options.d_out, options.qkv_bias, generator),
                         BasicLinear<T>(options.d_in, options.d_out, options.qkv_bias, generator)};
    }
}

template <class T>
BasicTensor<T> BasicSelfAttention<T>::compute(const BasicTensor<T>& x, const Pass<T>& pass,
                                              Remembered<T>& memory) const {
    memory.runtime = pass.runtime;
    memory.batched = x.rank() == 3;
    memory.query_input = with_batch(x, options_.d_in, "input");
    const auto project_raw = [&](const Parameter<T>& matrix) {  // x · W  [batch, tokens, d_out]
        const BasicTensor<T>& inputs = memory.query_input;
        BasicTensor<T> projected({inputs.size(0), inputs.size(1), options_.d_out});
        multiply(inputs.data(), matrix.value.data(), projected.data(), inputs.size(0) * inputs.size(1), options_.d_out,
                 options_.d_in, *memory.runtime);
        return projected;
    };
    if (raw_) {
        memory.queries = project_raw(raw_->query);
        memory.keys = project_raw(raw_->key);
        memory.values = project_raw(raw_->value);
    } else {
        project(linear_->query, linear_->key, linear_->value, memory);
    }
    if (pass.trace != nullptr) {
        pass.trace->record("inputs", x);
        if (raw_) {
            pass.trace->record("W_query", raw_->query.value);
            pass.trace->record("W_key", raw_->key.value);
            pass.trace->record("W_value", raw_->value.value);
        } else {
            record_layers<T>({&linear_->query, &linear_->key, &linear_->value}, *pass.trace);
        }
    }
    attend(memory, {.leading = memory.batched ? Shape{x.size(0)} : Shape{}}, pass);
    BasicTensor<T> context = without_batch(memory.context, memory.batched);
    if (pass.trace != nullptr) {
        pass.trace->record("context", context);
    }
    return context;
}

template <class T>
BasicTensor<T> BasicSelfAttention<T>::backward(const BasicTensor<T>& d_output) {
    const Remembered<T>& memory = recall(this->memory_);
    const BasicTensor<T> d_context = checked_gradient(d_output, memory, options_.d_out);
    if (linear_) {
        SequenceGradients<T> d = project_backward(linear_->query, linear_->key, linear_->value, memory, d_context);
        return without_batch(std::move(d.queries), memory.batched);
    }
    // q = x W:   dW = xᵀ d_q      d_x = d_q Wᵀ, and so for key and value
    const ProjectionGradients<T> d = attend_backward(memory, d_context);
    const BasicTensor<T>& x = memory.query_input;
    const std::int64_t rows = x.size(0) * x.size(1);
    const BasicTensor<T> x_transposed = x.reshaped({rows, options_.d_in}).transposed();
    BasicTensor<T> d_x(x.shape());
    const auto through = [&](Parameter<T>& matrix, const BasicTensor<T>& d_projected) {
        BasicTensor<T> d_matrix(matrix.value.shape());
        multiply(x_transposed.data(), d_projected.data(), d_matrix.data(), options_.d_in, options_.d_out, rows,
                 *memory.runtime);
        matrix.add_gradient(d_matrix);
        BasicTensor<T> part(x.shape());
        multiply_transposed(d_projected.data(), matrix.value.data(), part.data(), rows, options_.d_in, options_.d_out,
                            *memory.runtime);
        add_to(d_x, part, *memory.runtime);
    };
    through(raw_->query, d.queries);
    through(raw_->key, d.keys);
    through(raw_->value, d.values);
    return without_batch(std::move(d_x), memory.batched);
}

template <class T>
BasicTensor<T> BasicSelfAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    Remembered<T> memory;
    return compute(x, pass, memory);
}

template <class T>
BasicTensor<T> BasicSelfAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) {
    return remembering<T>(this->training(), this->memory_,
                          [&](Remembered<T>& memory) { return compute(x, pass, memory); });
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
