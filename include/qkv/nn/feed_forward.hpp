// Each token on its own: a wider layer, GELU, and back.
#pragma once

#include <cstdint>
#include <memory>

#include "qkv/export.h"
#include "qkv/nn/linear.hpp"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// The two forms of the Gaussian error linear unit (Hendrycks & Gimpel 2016, section 2).
enum class Gelu : std::uint8_t {
    tanh,  ///< x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))): GPT-2's, torch's approximate="tanh"
    erf,   ///< x/2 · (1 + erf(x/√2)): exact, torch's default
};

/// GELU of every element.
template <class T>
[[nodiscard]] QKV_EXPORT BasicTensor<T> gelu(const BasicTensor<T>& x, Gelu form = Gelu::tanh,
                                             const Runtime& runtime = Runtime::serial());

/// d_y · GELU'(x), elementwise. Throws Error(shape_mismatch) unless both have one shape.
template <class T>
[[nodiscard]] QKV_EXPORT BasicTensor<T> gelu_backward(const BasicTensor<T>& x, BasicTensor<T> d_y,
                                                      Gelu form = Gelu::tanh,
                                                      const Runtime& runtime = Runtime::serial());

/// y = GELU(x W₁ᵀ + b₁) W₂ᵀ + b₂, four times as wide in between (Vaswani et al. 2017, section 3.3, with GELU).
/// Parameters layers.0.weight [4 · width, width], layers.0.bias, layers.2.weight [width, 4 · width], layers.2.bias:
/// the names of a torch.nn.Sequential whose second entry is the GELU.
template <class T>
class BasicFeedForward : public BasicModule<T> {
public:
    /// Throws Error(invalid_argument) unless emb_dim is positive.
    BasicFeedForward(std::int64_t emb_dim, Gelu form, Generator& generator);

    /// x [..., emb_dim] → the same shape.
    [[nodiscard]] BasicTensor<T> forward(BasicTensor<T> x, const Pass<T>& pass = {});
    [[nodiscard]] BasicTensor<T> forward(const BasicTensor<T>& x, const Pass<T>& pass = {}) const;

    /// d_output, shaped as forward's result → the gradient of x, after a forward in training. Adds to the parameters'
    /// gradients.
    [[nodiscard]] BasicTensor<T> backward(const BasicTensor<T>& d_output);

    void visit_parameters(const typename BasicModule<T>::Visitor& visit) override;

protected:
    void forget_own() override { kept_.reset(); }

private:
    struct Kept;
    Gelu form_;
    BasicLinear<T> widen_, narrow_;
    std::shared_ptr<const Kept> kept_;
};

using FeedForward = BasicFeedForward<float>;

extern template class BasicFeedForward<float>;
extern template class BasicFeedForward<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
