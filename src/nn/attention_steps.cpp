#include "nn/attention_steps.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/check.hpp"
#include "core/matrix_product.hpp"

namespace qkv::nn {

template <class T>
void softmax_row(const T* scores, T* weights, std::int64_t n) {
    constexpr T kMasked = -std::numeric_limits<T>::infinity();
    T maximum = kMasked;
    for (std::int64_t i = 0; i < n; ++i) {
        // Unlike fmax, this keeps a NaN: a row of NaN must not pass for an empty one.
        maximum = scores[i] > maximum || std::isnan(scores[i]) ? scores[i] : maximum;
    }
    // An empty row: −∞ − (−∞) would be NaN. Its weights are 0, so its context is 0.
    if (maximum == kMasked) {
        std::fill_n(weights, n, T{0});
        return;
    }
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        weights[i] = std::exp(scores[i] - maximum);
        sum += static_cast<double>(weights[i]);
    }
    for (std::int64_t i = 0; i < n; ++i) {
        weights[i] = static_cast<T>(static_cast<double>(weights[i]) / sum);
    }
}

template <class T>
AttentionSteps<T> attention_steps(const BasicTensor<T>& queries, const BasicTensor<T>& keys, const StepMask& mask,
                                  const KeepBytes& keep, double dropout) {
    const std::int64_t n_count = queries.size(0);
    const std::int64_t query_count = queries.size(1);
    const std::int64_t key_count = keys.size(1);
    const std::int64_t head_dim = queries.size(2);
    const std::int64_t square = query_count * key_count;
    const Shape score_shape{n_count, query_count, key_count};
    AttentionSteps<T> steps;

    // Pass 1: scores = Q Kᵀ
    steps.scores = BasicTensor<T>(score_shape);
    for (std::int64_t n = 0; n < n_count; ++n) {
        multiply_transposed(queries.data() + n * query_count * head_dim, keys.data() + n * key_count * head_dim,
                            steps.scores.data() + n * square, query_count, key_count, head_dim);
    }

    // Pass 2: scaled = scores / √head_dim, then −∞ where the mask says no
    const T root = static_cast<T>(std::sqrt(static_cast<double>(head_dim)));
    steps.scaled = steps.scores;
    for (T& score : steps.scaled.values()) {
        score /= root;
    }
    if (mask.any()) {
        steps.masked = steps.scaled;
        for (std::int64_t n = 0; n < n_count; ++n) {
            for (std::int64_t query = 0; query < query_count; ++query) {
                for (std::int64_t key = 0; key < key_count; ++key) {
                    if (!mask.allows(n, query, key, key_count)) {
                        (*steps.masked)(n, query, key) = -std::numeric_limits<T>::infinity();
                    }
                }
            }
        }
    }

    // Pass 3: weights = softmax of each row, then dropout
    const BasicTensor<T>& before_softmax = steps.masked ? *steps.masked : steps.scaled;
    steps.weights = BasicTensor<T>(score_shape);
    for (std::int64_t row = 0; row < n_count * query_count; ++row) {
        softmax_row(before_softmax.data() + row * key_count, steps.weights.data() + row * key_count, key_count);
    }
    if (!keep.empty()) {
        // A kept weight is multiplied by 1/(1−p), as PyTorch multiplies by its noise tensor.
        const T scale = T{1} / static_cast<T>(1.0 - dropout);
        steps.dropout_mask = BasicTensor<T>(score_shape);
        steps.dropped_weights = BasicTensor<T>(score_shape);
        for (std::int64_t i = 0; i < steps.weights.numel(); ++i) {
            const bool kept = keep[static_cast<std::size_t>(i)] != 0;
            steps.dropout_mask->data()[i] = kept ? scale : T{0};
            steps.dropped_weights->data()[i] = kept ? steps.weights.data()[i] * scale : T{0};
        }
    }
    return steps;
}

void check_dropout(double p) {
    if (!(p >= 0.0 && p <= 1.0)) {
        fail(ErrorCode::invalid_argument, "dropout is ", p, "; expected a probability from 0 to 1");
    }
}

void check_heads(std::int64_t d_out, std::int64_t num_heads) {
    if (num_heads < 1 || d_out < 1) {
        fail(ErrorCode::invalid_argument, "num_heads is ", num_heads, " and d_out ", d_out, "; expected 1 or more");
    }
    if (d_out % num_heads == 0) {
        return;
    }
    std::int64_t below = num_heads;
    while (below > 1 && d_out % below != 0) {
        --below;
    }
    std::int64_t above = num_heads;
    while (above < d_out && d_out % above != 0) {
        ++above;
    }
    const std::string advice = num_heads > d_out ? concat("try ", d_out) : concat("try ", below, " or ", above);
    fail(ErrorCode::invalid_argument, "d_out ", d_out, " does not divide by ", num_heads, " heads; ", advice);
}

void check_kv_heads(std::int64_t num_heads, std::int64_t num_kv_heads) {
    if (num_kv_heads < 1 || num_heads % num_kv_heads != 0) {
        fail(ErrorCode::invalid_argument, "num_kv_heads is ", num_kv_heads, "; expected a divisor of the ", num_heads,
             " heads, so that each key head serves as many query heads");
    }
}

void check_context_length(std::int64_t tokens, std::int64_t context_length) {
    if (tokens > context_length) {
        fail(ErrorCode::out_of_range, tokens, " tokens are more than the context_length of ", context_length);
    }
}

template <class T>
BasicTensor<T> with_batch(BasicTensor<T> x, std::int64_t width, const char* what) {
    const bool fits = (x.rank() == 2 || x.rank() == 3) && (width < 0 || x.size(-1) == width);
    if (!fits) {
        const std::string expected = width < 0 ? "width" : std::to_string(width);
        fail(ErrorCode::shape_mismatch, what, " has shape ", to_string(x.shape()), "; expected [tokens, ", expected,
             "] or [batch, tokens, ", expected, "]");
    }
    if (x.rank() == 2) {
        Shape shape{1, x.size(0), x.size(1)};
        return std::move(x).reshaped(std::move(shape));
    }
    return x;
}

template <class T>
BasicTensor<T> without_batch(BasicTensor<T> x, bool input_had_batch) {
    if (input_had_batch) {
        return x;
    }
    Shape shape(x.shape().begin() + 1, x.shape().end());
    return std::move(x).reshaped(std::move(shape));
}

template <class T>
BasicTensor<T> split_heads(const BasicTensor<T>& x, std::int64_t heads) {
    const std::int64_t batch = x.size(0);
    const std::int64_t tokens = x.size(1);
    const std::int64_t head_dim = x.size(2) / heads;
    BasicTensor<T> split({batch * heads, tokens, head_dim});
    for (std::int64_t b = 0; b < batch; ++b) {
        for (std::int64_t token = 0; token < tokens; ++token) {
            for (std::int64_t column = 0; column < heads * head_dim; ++column) {
                split(b * heads + column / head_dim, token, column % head_dim) = x(b, token, column);
            }
        }
    }
    return split;
}

namespace {

/// Rows `third` · d_out onward of a stacked in_proj tensor.
template <class T>
BasicTensor<T> third_of(const BasicTensor<T>& stacked, std::int64_t third) {
    Shape shape = stacked.shape();
    shape[0] /= 3;
    const std::int64_t count = element_count(shape);
    const T* begin = stacked.data() + third * count;
    return BasicTensor<T>(std::move(shape), std::vector<T>(begin, begin + count));
}

}  // namespace

template <class T>
StateDict<T> from_torch_multihead(StateDict<T> state) {
    const bool stacked = state.contains("in_proj_weight");
    if (!stacked && !state.contains("q_proj_weight")) {
        return state;
    }
    constexpr const char* kNames[] = {"W_query", "W_key", "W_value"};
    constexpr const char* kSeparate[] = {"q_proj_weight", "k_proj_weight", "v_proj_weight"};
    for (std::int64_t third = 0; third < 3; ++third) {
        const std::string name = kNames[third];
        for (const auto& [from, to] : {std::pair{"in_proj_weight", ".weight"}, std::pair{"in_proj_bias", ".bias"}}) {
            if (const auto found = state.find(from); found != state.end()) {
                if (found->second.rank() == 0 || found->second.size(0) % 3 != 0) {
                    fail(ErrorCode::shape_mismatch, from, " has shape ", to_string(found->second.shape()),
                         "; expected three projections stacked along its first dimension");
                }
                state.insert_or_assign(name + to, third_of(found->second, third));
            }
        }
        if (auto separate = state.extract(kSeparate[third]); !stacked && !separate.empty()) {
            state.insert_or_assign(name + ".weight", std::move(separate.mapped()));
        }
    }
    state.erase("in_proj_weight");
    state.erase("in_proj_bias");
    // torch.nn.MultiheadAttention(bias=False) has no out_proj.bias; the stages always have one.
    if (const auto out = state.find("out_proj.weight"); out != state.end() && out->second.rank() == 2) {
        state.try_emplace("out_proj.bias", Shape{out->second.size(0)});
    }
    return state;
}

template <class T>
void record_steps(const AttentionSteps<T>& steps, const Shape& leading, BasicTrace<T>& trace) {
    const auto shown = [&leading](const BasicTensor<T>& tensor) {
        Shape shape = leading;
        shape.insert(shape.end(), tensor.shape().begin() + 1, tensor.shape().end());
        return tensor.reshaped(std::move(shape));
    };
    trace.record("scores", shown(steps.scores));
    trace.record("scaled", shown(steps.scaled));
    if (steps.masked) {
        trace.record("masked", shown(*steps.masked));
    }
    trace.record("weights", shown(steps.weights));
    if (steps.dropped_weights) {
        trace.record("dropout_mask", shown(*steps.dropout_mask));
        trace.record("dropped_weights", shown(*steps.dropped_weights));
    }
}

#define QKV_INSTANTIATE(T)                                                                                    \
    template void softmax_row(const T*, T*, std::int64_t);                                                    \
    template AttentionSteps<T> attention_steps(const BasicTensor<T>&, const BasicTensor<T>&, const StepMask&, \
                                               const KeepBytes&, double);                                     \
    template BasicTensor<T> with_batch(BasicTensor<T>, std::int64_t, const char*);                            \
    template BasicTensor<T> without_batch(BasicTensor<T>, bool);                                              \
    template BasicTensor<T> split_heads(const BasicTensor<T>&, std::int64_t);                                 \
    template StateDict<T> from_torch_multihead(StateDict<T>);                                                 \
    template void record_steps(const AttentionSteps<T>&, const Shape&, BasicTrace<T>&);
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
