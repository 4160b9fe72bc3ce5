// Rows of mean 0 and variance 1, then scaled and shifted.
#pragma once

#include <cstdint>
#include <string>

#include "qkv/export.h"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// Layer normalisation (Ba, Kiros & Hinton 2016, "Layer Normalization", equation 4) of each row of the last dimension,
/// as torch.nn.LayerNorm, with the names of the teaching class:
///
///     y = (x − mean) / √(variance + eps) · scale + shift          variance divides by the width, not by the width − 1
///
/// Parameters `scale` and `shift`, [width] each, ones and zeros at first.
template <class T>
class BasicLayerNorm {
public:
    /// Throws Error(invalid_argument) unless width is positive and eps positive and finite.
    explicit BasicLayerNorm(std::int64_t width, double eps = 1e-5);

    /// x [..., width] → the same shape.
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Runtime& runtime = Runtime::serial()) const;

    /// d_y, shaped as x → d_x for the x that forward had. Adds to the gradients of scale and shift.
    /// Throws Error(shape_mismatch) unless x fits the layer and d_y has x's shape.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& x, const BasicTensor<T>& d_y,
                                          const Runtime& runtime = Runtime::serial());

    void visit_parameters(const std::string& prefix, const typename BasicModule<T>::Visitor& visit);

    [[nodiscard]] std::int64_t width() const noexcept { return scale_.value.size(0); }
    [[nodiscard]] double eps() const noexcept { return eps_; }

private:
    Parameter<T> scale_, shift_;  // [width] each
    double eps_;
};

using LayerNorm = BasicLayerNorm<float>;

extern template class BasicLayerNorm<float>;
extern template class BasicLayerNorm<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
