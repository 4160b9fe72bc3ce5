#include "qkv/nn/module.hpp"

#include <set>
#include <utility>
#include <vector>

#include "core/check.hpp"

namespace qkv::nn {

namespace {

/// The causal mask of the PyTorch classes, where 1 means "hidden":
///
///     0 1 1
///     0 0 1
///     0 0 0
template <class T>
BasicTensor<T> causal_mask(std::int64_t context_length) {
    BasicTensor<T> mask({context_length, context_length});
    for (std::int64_t query = 0; query < context_length; ++query) {
        for (std::int64_t key = query + 1; key < context_length; ++key) {
            mask(query, key) = 1;
        }
    }
    return mask;
}

template <class T>
bool is_causal_mask(const BasicTensor<T>& mask) {
    for (std::int64_t query = 0; query < mask.size(0); ++query) {
        for (std::int64_t key = 0; key < mask.size(1); ++key) {
            if (mask(query, key) != (key > query ? T{1} : T{0})) {
                return false;
            }
        }
    }
    return true;
}

}  // namespace

template <class T>
BasicTensor<T>& Parameter<T>::accumulated() {
    if (gradient.empty()) {
        gradient = BasicTensor<T>(value.shape());
    }
    if (gradient.shape() != value.shape()) {
        fail(ErrorCode::shape_mismatch, "a gradient has shape ", to_string(gradient.shape()), ", its parameter shape ",
             to_string(value.shape()));
    }
    return gradient;
}

template <class T>
void Parameter<T>::add_gradient(const BasicTensor<T>& more) {
    if (more.shape() != value.shape()) {
        fail(ErrorCode::shape_mismatch, "a gradient of shape ", to_string(more.shape()), " for a parameter of shape ",
             to_string(value.shape()));
    }
    BasicTensor<T>& sum = accumulated();
    for (std::int64_t i = 0; i < sum.numel(); ++i) {
        sum.data()[i] += more.data()[i];
    }
}

template <class T>
void BasicModule<T>::train(bool on) {
    training_ = on;
    if (!on) {
        forget_own();
    }
    visit_children([on](const std::string&, BasicModule& child) { child.train(on); });
}

template <class T>
void BasicModule<T>::forget() {
    forget_own();
    visit_children([](const std::string&, BasicModule& child) { child.forget(); });
}

template <class T>
void BasicModule<T>::visit_parameters(const Visitor& visit) {
    visit_children([&visit](const std::string& prefix, BasicModule& child) {
        child.visit_parameters(
            [&](const std::string& name, Parameter<T>& parameter) { visit(concat(prefix, ".", name), parameter); });
    });
}

template <class T>
void BasicModule<T>::visit_children(const ChildVisitor& /*visit*/) {}

template <class T>
std::vector<std::pair<std::string, Parameter<T>*>> BasicModule<T>::parameters() {
    std::vector<std::pair<std::string, Parameter<T>*>> all;
    visit_parameters([&all](const std::string& name, Parameter<T>& parameter) { all.emplace_back(name, &parameter); });
    return all;
}

template <class T>
StateDict<T> BasicModule<T>::gradients() const {
    StateDict<T> all;
    const_cast<BasicModule*>(this)->visit_parameters(  // NOLINT(cppcoreguidelines-pro-type-const-cast): as below
        [&all](const std::string& name, const Parameter<T>& parameter) {
            if (!parameter.gradient.empty()) {
                all.emplace(name, parameter.gradient);
            }
        });
    return all;
}

template <class T>
void BasicModule<T>::zero_gradients() {
    visit_parameters(
        [](const std::string&, Parameter<T>& parameter) { parameter.gradient = BasicTensor<T>(Shape{0}); });
}

template <class T>
StateDict<T> BasicModule<T>::state_dict() const {
    StateDict<T> state;
    // Visiting only reads here; one const_cast saves every module a second visitor.
    const_cast<BasicModule*>(this)->visit_parameters(  // NOLINT(cppcoreguidelines-pro-type-const-cast)
        [&state](const std::string& name, const Parameter<T>& parameter) { state.emplace(name, parameter.value); });
    visit_masks([&state](const std::string& name, std::int64_t context_length) {
        state.emplace(name, causal_mask<T>(context_length));
    });
    add_shared(state);
    return state;
}

template <class T>
void BasicModule<T>::load_state_dict(const StateDict<T>& state) {
    StateDict<T> given = translate(state);
    std::vector<std::pair<BasicTensor<T>*, BasicTensor<T>*>> moves;
    std::set<std::string> known;
    const auto check_shape = [](const std::string& name, const Shape& expected, const Shape& found) {
        if (expected != found) {
            fail(ErrorCode::shape_mismatch, "tensor '", name, "' has shape ", to_string(found), "; expected ",
                 to_string(expected));
        }
    };
    visit_parameters([&](const std::string& name, Parameter<T>& parameter) {
        BasicTensor<T>& tensor = parameter.value;
        const auto found = given.find(name);
        if (found == given.end()) {
            fail(ErrorCode::shape_mismatch, "tensor '", name, "' of shape ", to_string(tensor.shape()), " is missing");
        }
        check_shape(name, tensor.shape(), found->second.shape());
        moves.emplace_back(&tensor, &found->second);
        known.insert(name);
    });
    // A mask is constant, so one that is given must agree; none is made for that, since a file of nothing but sizes
    // could ask for masks far larger than itself.
    visit_masks([&](const std::string& name, std::int64_t context_length) {
        const auto found = given.find(name);
        if (found == given.end()) {
            return;
        }
        check_shape(name, {context_length, context_length}, found->second.shape());
        if (!is_causal_mask(found->second)) {
            fail(ErrorCode::invalid_argument, "buffer '", name,
                 "' is not the causal mask (1 above the diagonal, 0 elsewhere) of this module");
        }
        known.insert(name);
    });
    for (const auto& [name, tensor] : given) {
        if (!known.contains(name)) {
            fail(ErrorCode::shape_mismatch, "tensor '", name, "' of shape ", to_string(tensor.shape()),
                 " belongs to no parameter of this module");
        }
    }
    forget();
    for (const auto& [to, from] : moves) {
        *to = std::move(*from);
    }
}

template <class T>
void BasicModule<T>::visit_masks(const MaskVisitor& visit) const {
    const_cast<BasicModule*>(this)->visit_children(  // NOLINT(cppcoreguidelines-pro-type-const-cast): as above
        [&visit](const std::string& prefix, const BasicModule& child) {
            child.visit_masks([&](const std::string& name, std::int64_t context_length) {
                visit(concat(prefix, ".", name), context_length);
            });
        });
}

template <class T>
StateDict<T> BasicModule<T>::translate(StateDict<T> state) const {
    return state;
}

template struct Parameter<float>;
template struct Parameter<double>;
template class BasicModule<float>;
template class BasicModule<double>;

}  // namespace qkv::nn
