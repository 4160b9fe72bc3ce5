#include "qkv/nn/layer_norm.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

namespace {

template <class T>
BasicTensor<T> filled(std::int64_t width, T value) {
    if (width < 1) {
        fail(ErrorCode::invalid_argument, "layer norm: width is ", width, "; expected 1 or more");
    }
    BasicTensor<T> all({width});
    std::ranges::fill(all.values(), value);
    return all;
}

template <class T>
void check_rows(const BasicTensor<T>& x, std::int64_t width) {
    if (x.rank() < 1 || x.size(-1) != width) {
        fail(ErrorCode::shape_mismatch, "layer norm: input has shape ", to_string(x.shape()), "; expected [..., ",
             width, "]");
    }
}

}  // namespace

template <class T>
BasicLayerNorm<T>::BasicLayerNorm(std::int64_t width, double eps)
    : scale_(filled<T>(width, 1)), shift_(filled<T>(width, 0)), eps_(eps) {
    if (!std::isfinite(eps) || !(eps > 0)) {
        fail(ErrorCode::invalid_argument, "layer norm: eps is ", eps, "; expected a finite number above 0");
    }
}

template <class T>
BasicTensor<T> BasicLayerNorm<T>::forward(const BasicTensor<T>& x, const Runtime& runtime) const {
    check_rows(x, width());
    const auto normalise = kernels::layers<T>(runtime.instruction_set()).layer_norm;
    BasicTensor<T> y = BasicTensor<T>::unwritten(x.shape());
    for_runs(runtime, x.numel() / width(), width(), [&](std::int64_t begin, std::int64_t end) {
        normalise(y.data() + begin * width(), x.data() + begin * width(), scale_.value.data(), shift_.value.data(),
                  end - begin, width(), eps_);
    });
    return y;
}

template <class T>
BasicTensor<T> BasicLayerNorm<T>::backward(const BasicTensor<T>& x, const BasicTensor<T>& d_y, const Runtime& runtime) {
    check_rows(x, width());
    if (d_y.shape() != x.shape()) {
        fail(ErrorCode::shape_mismatch, "layer norm: the gradient of the output has shape ", to_string(d_y.shape()),
             "; expected ", to_string(x.shape()));
    }
    const auto back = kernels::layers<T>(runtime.instruction_set()).layer_norm_backward;
    BasicTensor<T> d_x = BasicTensor<T>::unwritten(x.shape());
    const std::int64_t rows = x.numel() / width();
    const std::int64_t run = rows_per_task(width());
    // Each task adds up its own rows; the tasks' sums are then added in their order, whoever ran them.
    const std::int64_t tasks = (rows + run - 1) / run;
    std::vector<double> sums(static_cast<std::size_t>(tasks * 2 * width()));
    for_runs(runtime, rows, width(), [&](std::int64_t begin, std::int64_t end) {
        double* const d_scale = sums.data() + begin / run * 2 * width();
        back(d_x.data() + begin * width(), d_scale, d_scale + width(), x.data() + begin * width(), scale_.value.data(),
             d_y.data() + begin * width(), end - begin, width(), eps_);
    });
    BasicTensor<T>& scale = scale_.accumulated();
    BasicTensor<T>& shift = shift_.accumulated();
    for (std::int64_t column = 0; column < width(); ++column) {
        double d_scale = 0;
        double d_shift = 0;
        for (std::int64_t task = 0; task < tasks; ++task) {
            d_scale += sums[static_cast<std::size_t>(task * 2 * width() + column)];
            d_shift += sums[static_cast<std::size_t>((task * 2 + 1) * width() + column)];
        }
        scale(column) += static_cast<T>(d_scale);
        shift(column) += static_cast<T>(d_shift);
    }
    return d_x;
}

template <class T>
void BasicLayerNorm<T>::visit_parameters(const std::string& prefix, const typename BasicModule<T>::Visitor& visit) {
    visit(prefix + ".scale", scale_);
    visit(prefix + ".shift", shift_);
}

template class BasicLayerNorm<float>;
template class BasicLayerNorm<double>;

}  // namespace qkv::nn
