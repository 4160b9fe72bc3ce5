// Turning gradients into better parameters.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "qkv/export.h"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// A module's parameters, as module.parameters() lists them. They must outlive the optimizer and stay in place.
template <class T>
using ParameterList = std::vector<std::pair<std::string, Parameter<T>*>>;

struct SgdOptions {
    double lr = 1e-3;
    double momentum = 0.0;
    double weight_decay = 0.0;
};

/// Stochastic gradient descent, as torch.optim.SGD: g ← g + weight_decay·p, v ← momentum·v + g, p ← p − lr·v.
template <class T>
class Sgd {
public:
    /// Throws Error(invalid_argument) for a negative or non-finite option.
    Sgd(ParameterList<T> parameters, const SgdOptions& options);
    /// One step over all parameters that have a gradient. Throws Error(shape_mismatch) for one of another shape.
    void step();
    void set_lr(double lr);

private:
    ParameterList<T> parameters_;
    SgdOptions options_;
    std::vector<BasicTensor<T>> velocity_;
};

struct AdamWOptions {
    double lr = 1e-3;
    double beta1 = 0.9;
    double beta2 = 0.999;
    double eps = 1e-8;
    double weight_decay = 0.01;
};

/// AdamW (Loshchilov & Hutter 2019, algorithm 2, with Adam's bias correction of Kingma & Ba 2015), as
/// torch.optim.AdamW:
///
///     p ← p − lr·weight_decay·p      m ← β₁m + (1−β₁)g      v ← β₂v + (1−β₂)g²
///     p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)
template <class T>
class AdamW {
public:
    /// Throws Error(invalid_argument) for an option out of its range.
    AdamW(ParameterList<T> parameters, const AdamWOptions& options);
    /// One step over all parameters that have a gradient. Throws Error(shape_mismatch) for one of another shape.
    void step(const Runtime& runtime = Runtime::serial());
    void set_lr(double lr);

    /// What a step leaves for the next one, under torch.optim.AdamW's names: NAME.exp_avg (m) and NAME.exp_avg_sq (v),
    /// shaped as the parameter NAME, and NAME.step (t, of rank 0). Parameters that no step has reached are absent.
    [[nodiscard]] StateDict<T> state_dict() const;
    /// Goes on from what state_dict() gave: the next step has the same bits. Throws Error(shape_mismatch), and then
    /// nothing has changed, for an unknown name, one of the three without the others, another shape, or a step that is
    /// no whole number from 1.
    void load_state_dict(const StateDict<T>& state);

private:
    struct Moments {
        BasicTensor<T> first, second;
        std::int64_t steps = 0;
    };
    ParameterList<T> parameters_;
    AdamWOptions options_;
    std::vector<Moments> moments_;
};

/// Scales all gradients so that their joint 2-norm is at most `max_norm`, as torch.nn.utils.clip_grad_norm_, and
/// returns the norm before. Throws Error(invalid_argument) unless max_norm > 0.
template <class T>
QKV_EXPORT double clip_gradient_norm(const ParameterList<T>& parameters, double max_norm,
                                     const Runtime& runtime = Runtime::serial());

extern template class Sgd<float>;
extern template class Sgd<double>;
extern template class AdamW<float>;
extern template class AdamW<double>;
extern template QKV_EXPORT double clip_gradient_norm(const ParameterList<float>&, double, const Runtime&);
extern template QKV_EXPORT double clip_gradient_norm(const ParameterList<double>&, double, const Runtime&);

}  // namespace nn QKV_EXPORT
}  // namespace qkv
