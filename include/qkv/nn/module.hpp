// What the attention stages share: named parameters and their gradients, train and eval, state_dict.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "qkv/export.h"
#include "qkv/random.hpp"
#include "qkv/runtime.hpp"
#include "qkv/tensor.hpp"
#include "qkv/trace.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// What one forward call may use besides its input.
template <class T>
struct Pass {
    /// Where dropout in training draws its mask from, as PyTorch draws from its global generator.
    Generator* generator = nullptr;
    /// Receives every intermediate tensor by name (docs/notation.md). Changes no bit of the result.
    BasicTrace<T>* trace = nullptr;
    /// Whose threads and instructions to use. A backward uses those of its forward, so it must live until then.
    const Runtime* runtime = &Runtime::serial();
};

/// A trainable tensor and what backward has added up for it.
template <class T>
struct Parameter {
    BasicTensor<T> value;
    BasicTensor<T> gradient;  ///< as value, or empty: nothing added up yet

    Parameter() = default;
    explicit Parameter(BasicTensor<T> initial) : value(std::move(initial)), gradient(Shape{0}) {}

    /// gradient += more. Throws Error(shape_mismatch) unless `more` has value's shape.
    void add_gradient(const BasicTensor<T>& more);
    /// The gradient to add to: zeros where nothing has been added up yet. Throws Error(shape_mismatch) where someone
    /// has put one of another shape there.
    [[nodiscard]] BasicTensor<T>& accumulated();
};

/// What forward keeps for backward (src/nn/attend.hpp).
template <class T>
struct Remembered;

/// Base of the stages. Parameters and buffers carry the names of the usual PyTorch teaching classes, so a state_dict
/// goes both ways.
template <class T>
class BasicModule {
public:
    using Visitor = std::function<void(const std::string& name, Parameter<T>& parameter)>;
    using ChildVisitor = std::function<void(const std::string& name, BasicModule& child)>;

    BasicModule() = default;
    BasicModule(const BasicModule&) = default;
    BasicModule(BasicModule&&) noexcept = default;
    BasicModule& operator=(const BasicModule&) = default;
    BasicModule& operator=(BasicModule&&) noexcept = default;
    virtual ~BasicModule() = default;

    /// In training, dropout is active, and forward on a module that is not const remembers what backward needs. A new
    /// module trains, as in PyTorch. All modules inside this one follow.
    void train(bool on = true);
    void eval() { train(false); }
    [[nodiscard]] bool training() const noexcept { return training_; }

    /// Gives back the memory of what forward kept for backward, here and in all modules inside.
    void forget();

    /// Calls `visit` for every parameter, in the order in which PyTorch registers them. By default those of the modules
    /// inside, each named `child.parameter`.
    virtual void visit_parameters(const Visitor& visit);
    /// Calls `visit` for every module directly inside this one, with its name here.
    virtual void visit_children(const ChildVisitor& visit);

    /// All parameters, for an optimizer; valid while the module stays where it is.
    [[nodiscard]] std::vector<std::pair<std::string, Parameter<T>*>> parameters();
    /// Gradients by parameter name; those that no backward has reached are absent.
    [[nodiscard]] StateDict<T> gradients() const;
    /// Forgets all gradients, as PyTorch's zero_grad().
    void zero_gradients();

    /// Parameters and buffers by name, as PyTorch's state_dict().
    [[nodiscard]] StateDict<T> state_dict() const;

    /// Replaces all parameters. Strict: a missing or unknown name or another shape throws Error(shape_mismatch) that
    /// names it, and then nothing has changed. Buffers may be absent; when present they must hold this module's values.
    void load_state_dict(const StateDict<T>& state);

protected:
    /// Drops what forward kept for backward in this module itself: it belongs to parameters that are no more, or is no
    /// longer wanted.
    virtual void forget_own() { memory_.reset(); }

    /// Written by forward in training only, so several threads may run forward on one module in eval mode.
    std::shared_ptr<const Remembered<T>> memory_;

    /// Visits the causal masks [context_length, context_length] that PyTorch's classes register as a buffer `mask`. By
    /// default those of the modules inside.
    using MaskVisitor = std::function<void(const std::string& name, std::int64_t context_length)>;
    virtual void visit_masks(const MaskVisitor& visit) const;
    /// Adds to a state_dict what stands there under two names. By default nothing.
    virtual void add_shared(StateDict<T>& /*state*/) const {}
    /// Rewrites a state_dict of a kindred class (torch.nn.MultiheadAttention) into this module's own names.
    [[nodiscard]] virtual StateDict<T> translate(StateDict<T> state) const;

private:
    bool training_ = true;
};

extern template struct Parameter<float>;
extern template struct Parameter<double>;
extern template class BasicModule<float>;
extern template class BasicModule<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
