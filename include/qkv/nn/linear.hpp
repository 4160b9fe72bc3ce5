// y = x Wᵀ + b, as torch.nn.Linear.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "qkv/export.h"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// torch.nn.Linear: weight [d_out, d_in] (transposed against the x·W of the formulas), bias [d_out] or none.
template <class T>
class BasicLinear {
public:
    /// Draws weight, then bias, exactly as PyTorch initialises them: uniform in ±1/√d_in.
    /// Throws Error(invalid_argument) unless both widths are positive.
    BasicLinear(std::int64_t d_in, std::int64_t d_out, bool with_bias, Generator& generator);

    /// x [..., d_in] → [..., d_out].
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Runtime& runtime = Runtime::serial()) const;

    /// d_y [..., d_out] → d_x [..., d_in] for the x that forward had; added to `more`, where x has got a gradient
    /// already. Adds d_yᵀ x to the weight's gradient and the sum of d_y's rows to the bias's. Throws
    /// Error(shape_mismatch) unless x fits the layer, d_y the y of x, and `more`, unless empty, x.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& x, const BasicTensor<T>& d_y,
                                          const Runtime& runtime = Runtime::serial(), BasicTensor<T> more = {});

    void visit_parameters(const std::string& prefix, const typename BasicModule<T>::Visitor& visit);

    [[nodiscard]] std::int64_t d_in() const noexcept { return weight_.value.shape()[1]; }
    [[nodiscard]] std::int64_t d_out() const noexcept { return weight_.value.shape()[0]; }
    [[nodiscard]] const BasicTensor<T>& weight() const noexcept { return weight_.value; }
    [[nodiscard]] Parameter<T>& weight_parameter() noexcept { return weight_; }
    /// nullptr without a bias.
    [[nodiscard]] const BasicTensor<T>* bias() const noexcept { return bias_ ? &bias_->value : nullptr; }

private:
    Parameter<T> weight_;               // [d_out, d_in]
    std::optional<Parameter<T>> bias_;  // [d_out]
};

using Linear = BasicLinear<float>;

extern template class BasicLinear<float>;
extern template class BasicLinear<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
