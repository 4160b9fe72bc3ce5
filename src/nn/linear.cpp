#include "qkv/nn/linear.hpp"

#include <cmath>
#include <utility>

#include "core/check.hpp"
#include "nn/matrix_product.hpp"

namespace qkv::nn {

namespace {

void check_width(const char* what, std::int64_t width) {
    if (width < 1) {
        fail(ErrorCode::invalid_argument, what, " is ", width, "; expected 1 or more");
    }
}

/// The shape of y for this x.
template <class T>
Shape output_shape(const BasicTensor<T>& x, std::int64_t d_in, std::int64_t d_out) {
    if (x.rank() < 1 || x.size(-1) != d_in) {
        fail(ErrorCode::shape_mismatch, "linear layer: input has shape ", to_string(x.shape()), "; expected [..., ",
             d_in, "]");
    }
    Shape shape = x.shape();
    shape.back() = d_out;
    return shape;
}

}  // namespace

template <class T>
BasicLinear<T>::BasicLinear(std::int64_t d_in, std::int64_t d_out, bool with_bias, Generator& generator) {
    check_width("d_in", d_in);
    check_width("d_out", d_out);
    weight_ = Parameter<T>(BasicTensor<T>({d_out, d_in}));
    // kaiming_uniform_(a = √5): gain · √3 / √d_in in PyTorch's own double operations, whose result can differ from
    // 1/√d_in in the last bit of a double.
    const double slope = std::sqrt(5.0);
    const double gain = std::sqrt(2.0 / (1.0 + slope * slope));
    const double weight_bound = std::sqrt(3.0) * (gain / std::sqrt(static_cast<double>(d_in)));
    generator.uniform_(weight_.value.values(), -weight_bound, weight_bound);
    if (with_bias) {
        const double bias_bound = 1.0 / std::sqrt(static_cast<double>(d_in));
        bias_.emplace(BasicTensor<T>({d_out}));
        generator.uniform_(bias_->value.values(), -bias_bound, bias_bound);
    }
}

template <class T>
BasicTensor<T> BasicLinear<T>::forward(const BasicTensor<T>& x, const Runtime& runtime) const {
    BasicTensor<T> y = BasicTensor<T>::unwritten(output_shape(x, d_in(), d_out()));
    multiply<T>({.m = x.numel() / d_in(),
                 .n = d_out(),
                 .k = d_in(),
                 .a = row_major(x.data(), d_in()),
                 .b = row_major(weight_.value.data(), d_in()).transposed(),
                 .c = y.data(),
                 .bias = bias_ ? bias_->value.data() : nullptr,
                 .sums = sums_for_weight(weight_.value.numel())},
                runtime);
    return y;
}

template <class T>
BasicTensor<T> BasicLinear<T>::backward(const BasicTensor<T>& x, const BasicTensor<T>& d_y, const Runtime& runtime,
                                        BasicTensor<T> more) {
    if (const Shape expected = output_shape(x, d_in(), d_out()); d_y.shape() != expected) {
        fail(ErrorCode::shape_mismatch, "linear layer: the gradient of the output has shape ", to_string(d_y.shape()),
             "; expected ", to_string(expected));
    }
    const bool adds = !more.empty();
    if (adds && more.shape() != x.shape()) {
        fail(ErrorCode::shape_mismatch, "linear layer: a gradient of the input has shape ", to_string(more.shape()),
             "; expected ", to_string(x.shape()));
    }
    const std::int64_t rows = x.numel() / d_in();
    const Sums sums = gradient_sums_for_weight(weight_.value.numel());

    // y = x Wᵀ + b:   dW = d_yᵀ x      db = Σ rows of d_y      d_x = d_y W
    BasicTensor<T>& d_weight = weight_.accumulated();
    multiply<T>({.m = d_out(),
                 .n = d_in(),
                 .k = rows,
                 .a = row_major(d_y.data(), d_out()).transposed(),
                 .b = row_major(x.data(), d_in()),
                 .c = d_weight.data(),
                 .add = true,
                 .sums = sums,
                 .in_groups = gradient_in_groups(d_out(), d_in())},
                runtime);
    if (bias_) {
        add_rows(bias_->accumulated().data(), d_y.data(), rows, d_out(), runtime);
    }
    BasicTensor<T> d_x = adds ? std::move(more) : BasicTensor<T>::unwritten(x.shape());
    multiply<T>({.m = rows,
                 .n = d_in(),
                 .k = d_out(),
                 .a = row_major(d_y.data(), d_out()),
                 .b = row_major(weight_.value.data(), d_in()),
                 .c = d_x.data(),
                 .add = adds,
                 .sums = sums},
                runtime);
    return d_x;
}

template <class T>
void BasicLinear<T>::visit_parameters(const std::string& prefix, const typename BasicModule<T>::Visitor& visit) {
    visit(prefix + ".weight", weight_);
    if (bias_) {
        visit(prefix + ".bias", *bias_);
    }
}

template class BasicLinear<float>;
template class BasicLinear<double>;

}  // namespace qkv::nn
