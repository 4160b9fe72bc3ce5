#include "qkv/nn/simple_attention.hpp"

#include <cmath>
#include <vector>

#include "core/check.hpp"
#include "core/matrix_product.hpp"
#include "nn/attention_steps.hpp"

namespace qkv::nn {

namespace {

template <class T>
void normalise_row(const T* scores, T* weights, std::int64_t n, Normalise how) {
    if (how == Normalise::softmax) {
        softmax_row(scores, weights, n);
        return;
    }
    T sum = 0;  // not double: the naive softmax overflows where PyTorch's does
    for (std::int64_t i = 0; i < n; ++i) {
        weights[i] = how == Normalise::sum ? scores[i] : std::exp(scores[i]);
        sum += weights[i];
    }
    for (std::int64_t i = 0; i < n; ++i) {
        weights[i] /= sum;
    }
}

/// Each row of the last dimension on its own.
template <class T>
BasicTensor<T> normalise_rows(const BasicTensor<T>& scores, Normalise how) {
    BasicTensor<T> weights(scores.shape());
    const std::int64_t n = scores.size(-1);
    for (std::int64_t begin = 0; begin < scores.numel(); begin += n) {
        normalise_row(scores.data() + begin, weights.data() + begin, n, how);
    }
    return weights;
}

}  // namespace

template <class T>
BasicTensor<T> normalised(const BasicTensor<T>& scores, Normalise how) {
    return normalise_rows(scores, how);
}

template <class T>
BasicTensor<T> BasicSimpleSelfAttention<T>::forward(const BasicTensor<T>& x, const Pass<T>& pass) const {
    const BasicTensor<T> inputs = with_batch(x, -1, "input");
    const std::int64_t batch = inputs.size(0);
    const std::int64_t tokens = inputs.size(1);
    const std::int64_t dim = inputs.size(2);

    BasicTensor<T> scores({batch, tokens, tokens});
    for (std::int64_t b = 0; b < batch; ++b) {
        const T* sequence = inputs.data() + b * tokens * dim;
        multiply_transposed(sequence, sequence, scores.data() + b * tokens * tokens, tokens, tokens, dim);
    }
    const BasicTensor<T> weights = normalise_rows(scores, how_);
    BasicTensor<T> context(inputs.shape());
    for (std::int64_t b = 0; b < batch; ++b) {
        multiply(weights.data() + b * tokens * tokens, inputs.data() + b * tokens * dim,
                 context.data() + b * tokens * dim, tokens, dim, tokens);
    }
    context = without_batch(std::move(context), x.rank() == 3);
    if (pass.trace != nullptr) {
        const bool batched = x.rank() == 3;
        pass.trace->record("inputs", x);
        pass.trace->record("scores", without_batch(scores, batched));
        pass.trace->record("sum_normalised", without_batch(normalise_rows(scores, Normalise::sum), batched));
        pass.trace->record("weights", without_batch(weights, batched));
        pass.trace->record("context", context);
    }
    return context;
}

template <class T>
BasicTensor<T> BasicSimpleSelfAttention<T>::forward_loops(const BasicTensor<T>& x) const {
    const BasicTensor<T> inputs = with_batch(x, -1, "input");
    const std::int64_t tokens = inputs.size(1);
    const std::int64_t dim = inputs.size(2);
    BasicTensor<T> context(inputs.shape());
    BasicTensor<T> scores({tokens});
    for (std::int64_t b = 0; b < inputs.size(0); ++b) {
        for (std::int64_t query = 0; query < tokens; ++query) {
            for (std::int64_t key = 0; key < tokens; ++key) {
                double sum = 0;
                for (std::int64_t column = 0; column < dim; ++column) {
                    sum += static_cast<double>(inputs(b, query, column)) * static_cast<double>(inputs(b, key, column));
                }
                scores(key) = static_cast<T>(sum);
            }
            const BasicTensor<T> weights = normalise_rows(scores, how_);
            for (std::int64_t column = 0; column < dim; ++column) {
                double sum = 0;
                for (std::int64_t key = 0; key < tokens; ++key) {
                    sum += static_cast<double>(weights(key)) * static_cast<double>(inputs(b, key, column));
                }
                context(b, query, column) = static_cast<T>(sum);
            }
        }
    }
    return without_batch(std::move(context), x.rank() == 3);
}

template <class T>
BasicTensor<T> BasicSimpleSelfAttention<T>::forward_query(const BasicTensor<T>& x, std::int64_t query) const {
    if (x.rank() != 2) {
        fail(ErrorCode::shape_mismatch, "input has shape ", to_string(x.shape()), "; expected [tokens, dim]");
    }
    const std::int64_t tokens = x.size(0);
    const std::int64_t dim = x.size(1);
    if (query < 0 || query >= tokens) {
        fail(ErrorCode::out_of_range, "query ", query, " of ", tokens, " tokens; expected 0 to ", tokens - 1);
    }
    BasicTensor<T> scores({tokens});
    multiply_transposed(x.data() + query * dim, x.data(), scores.data(), 1, tokens, dim);
    const BasicTensor<T> weights = normalise_rows(scores, how_);
    BasicTensor<T> context({dim});
    multiply(weights.data(), x.data(), context.data(), 1, dim, tokens);
    return context;
}

template <class T>
BasicTensor<T> BasicSimpleSelfAttention<T>::backward(const BasicTensor<T>& x, const BasicTensor<T>& d_context) const {
    if (d_context.shape() != x.shape()) {
        fail(ErrorCode::shape_mismatch, "the gradient of the context has shape ", to_string(d_context.shape()),
             "; expected ", to_string(x.shape()));
    }
    const BasicTensor<T> inputs = with_batch(x, -1, "input");
    const std::int64_t tokens = inputs.size(1);
    const std::int64_t dim = inputs.size(2);
    BasicTensor<T> d_x(x.shape());
    BasicTensor<T> scores({tokens, tokens});
    BasicTensor<T> d_scores({tokens, tokens});
    BasicTensor<T> part({tokens, dim});
    for (std::int64_t b = 0; b < inputs.size(0); ++b) {
        const T* sequence = inputs.data() + b * tokens * dim;
        const T* d_rows = d_context.data() + b * tokens * dim;
        T* d_sequence = d_x.data() + b * tokens * dim;
        const auto add = [&](const BasicTensor<T>& left, const T* right) {
            multiply(left.data(), right, part.data(), tokens, dim, tokens);
            for (std::int64_t i = 0; i < part.numel(); ++i) {
                d_sequence[i] += part.data()[i];
            }
        };
        multiply_transposed(sequence, sequence, scores.data(), tokens, tokens, dim);
        const BasicTensor<T> weights = normalise_rows(scores, how_);
        // context = weights x:   d_weights = d_context xᵀ      x, as value, gets weightsᵀ d_context
        multiply_transposed(d_rows, sequence, d_scores.data(), tokens, tokens, dim);
        add(weights.transposed(), d_rows);
        for (std::int64_t query = 0; query < tokens; ++query) {
            const T* row_weights = weights.data() + query * tokens;
            T* row = d_scores.data() + query * tokens;
            // Both normalisers subtract what the row's sum passes on: Σ weight · d_weight.
            const T common = dot(row_weights, row, tokens);
            T row_sum = 0;
            for (std::int64_t key = 0; key < tokens; ++key) {
                row_sum += scores(query, key);
            }
            for (std::int64_t key = 0; key < tokens; ++key) {
                const T slope = how_ == Normalise::sum ? T{1} / row_sum : row_weights[key];
                row[key] = (row[key] - common) * slope;
            }
        }
        // scores = x xᵀ:   x, as query, gets d_scores x; as key, d_scoresᵀ x
        add(d_scores, sequence);
        add(d_scores.transposed(), sequence);
    }
    return d_x;
}

template BasicTensor<float> normalised(const BasicTensor<float>&, Normalise);
template BasicTensor<double> normalised(const BasicTensor<double>&, Normalise);
template class BasicSimpleSelfAttention<float>;
template class BasicSimpleSelfAttention<double>;

}  // namespace qkv::nn
