#include "qkv/nn/optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

namespace {

void check_not_negative(std::string_view name, double value) {
    if (!std::isfinite(value) || value < 0) {
        fail(ErrorCode::invalid_argument, name, " is ", value, "; expected a finite number, 0 or more");
    }
}

void check_decay_rate(std::string_view name, double value) {
    if (!(value >= 0 && value < 1)) {
        fail(ErrorCode::invalid_argument, name, " is ", value, "; expected 0 or more and less than 1");
    }
}

/// Whether there is anything to step along. Gradients are public, so what someone put there is checked.
template <class T>
bool has_gradient(const std::pair<std::string, Parameter<T>*>& named) {
    const auto& [name, parameter] = named;
    if (parameter->gradient.empty()) {
        return false;
    }
    if (parameter->gradient.shape() != parameter->value.shape()) {
        fail(ErrorCode::shape_mismatch, "the gradient of '", name, "' has shape ",
             to_string(parameter->gradient.shape()), "; expected ", to_string(parameter->value.shape()));
    }
    return true;
}

/// Elements begin to end of the parameter at `place`.
struct Run {
    std::size_t place;
    std::int64_t begin, end;
};

/// All parameters that have a gradient, in runs: most are too small to be shared among threads one by one.
template <class T>
std::vector<Run> runs_of(const ParameterList<T>& parameters) {
    const std::int64_t run = rows_per_task(1);
    std::vector<Run> runs;
    for (std::size_t place = 0; place < parameters.size(); ++place) {
        const std::int64_t count = parameters[place].second->gradient.numel();
        for (std::int64_t begin = 0; begin < count; begin += run) {
            runs.push_back({place, begin, std::min(count, begin + run)});
        }
    }
    return runs;
}

template <class Body>
void for_each_run(const std::vector<Run>& runs, const Runtime& runtime, const Body& body) {
    runtime.parallel_for(static_cast<std::int64_t>(runs.size()),
                         [&](std::int64_t index) { body(runs[static_cast<std::size_t>(index)], index); });
}

}  // namespace

template <class T>
Sgd<T>::Sgd(ParameterList<T> parameters, const SgdOptions& options)
    : parameters_(std::move(parameters)), options_(options), velocity_(parameters_.size()) {
    check_not_negative("lr", options.lr);
    check_not_negative("momentum", options.momentum);
    check_not_negative("weight_decay", options.weight_decay);
}

template <class T>
void Sgd<T>::set_lr(double lr) {
    check_not_negative("lr", lr);
    options_.lr = lr;
}

template <class T>
void Sgd<T>::step() {
    const T lr = static_cast<T>(options_.lr);
    const T momentum = static_cast<T>(options_.momentum);
    const T decay = static_cast<T>(options_.weight_decay);
    for (std::size_t place = 0; place < parameters_.size(); ++place) {
        if (!has_gradient(parameters_[place])) {
            continue;
        }
        Parameter<T>& parameter = *parameters_[place].second;
        BasicTensor<T>& velocity = velocity_[place];
        if (velocity.empty()) {
            velocity = BasicTensor<T>(parameter.value.shape());
        }
        for (std::int64_t i = 0; i < parameter.value.numel(); ++i) {
            T& p = parameter.value.data()[i];
            T& v = velocity.data()[i];
            v = momentum * v + (parameter.gradient.data()[i] + decay * p);
            p -= lr * v;
        }
    }
}

template <class T>
AdamW<T>::AdamW(ParameterList<T> parameters, const AdamWOptions& options)
    : parameters_(std::move(parameters)), options_(options), moments_(parameters_.size()) {
    check_not_negative("lr", options.lr);
    check_decay_rate("beta1", options.beta1);
    check_decay_rate("beta2", options.beta2);
    check_not_negative("eps", options.eps);
    check_not_negative("weight_decay", options.weight_decay);
}

template <class T>
void AdamW<T>::set_lr(double lr) {
    check_not_negative("lr", lr);
    options_.lr = lr;
}

template <class T>
void AdamW<T>::step(const Runtime& runtime) {
    // All that may be refused comes first: then either all parameters take the step or none.
    for (std::size_t place = 0; place < parameters_.size(); ++place) {
        Moments& moments = moments_[place];
        if (has_gradient(parameters_[place]) && moments.first.empty()) {
            const Shape& shape = parameters_[place].second->value.shape();
            BasicTensor<T> second(shape);
            moments.first = BasicTensor<T>(shape);
            moments.second = std::move(second);
        }
    }
    const std::vector<Run> runs = runs_of(parameters_);
    std::vector<kernels::AdamWStep<T>> steps(parameters_.size());
    for (std::size_t place = 0; place < parameters_.size(); ++place) {
        if (parameters_[place].second->gradient.empty()) {
            continue;
        }
        // The step's constants in double, as PyTorch's Python scalars are.
        const auto t = static_cast<double>(++moments_[place].steps);
        steps[place] = {.shrink = static_cast<T>(1.0 - options_.lr * options_.weight_decay),
                        .one_minus_beta1 = static_cast<T>(1.0 - options_.beta1),
                        .beta2 = static_cast<T>(options_.beta2),
                        .one_minus_beta2 = static_cast<T>(1.0 - options_.beta2),
                        .step_size = static_cast<T>(options_.lr / (1.0 - std::pow(options_.beta1, t))),
                        .root_correction = static_cast<T>(std::sqrt(1.0 - std::pow(options_.beta2, t))),
                        .eps = static_cast<T>(options_.eps)};
    }
    const auto update = kernels::layers<T>(runtime.instruction_set()).adamw;
    for_each_run(runs, runtime, [&](const Run& run, std::int64_t) {
        Parameter<T>& parameter = *parameters_[run.place].second;
        Moments& moments = moments_[run.place];
        update(parameter.value.data() + run.begin, moments.first.data() + run.begin, moments.second.data() + run.begin,
               parameter.gradient.data() + run.begin, run.end - run.begin, steps[run.place]);
    });
}

template <class T>
StateDict<T> AdamW<T>::state_dict() const {
    StateDict<T> state;
    for (std::size_t place = 0; place < parameters_.size(); ++place) {
        const Moments& moments = moments_[place];
        if (moments.steps > 0) {
            const std::string& name = parameters_[place].first;
            state.emplace(name + ".exp_avg", moments.first);
            state.emplace(name + ".exp_avg_sq", moments.second);
            state.emplace(name + ".step", BasicTensor<T>(Shape{}, {static_cast<T>(moments.steps)}));
        }
    }
    return state;
}

template <class T>
void AdamW<T>::load_state_dict(const StateDict<T>& state) {
    std::vector<Moments> loaded(parameters_.size());
    std::size_t used = 0;
    for (std::size_t place = 0; place < parameters_.size(); ++place) {
        const std::string& name = parameters_[place].first;
        const auto take = [&](const char* what, const Shape& shape) -> const BasicTensor<T>* {
            const auto found = state.find(name + what);
            if (found == state.end()) {
                return nullptr;
            }
            if (found->second.shape() != shape) {
                fail(ErrorCode::shape_mismatch, "AdamW: '", name, what, "' has shape ",
                     to_string(found->second.shape()), "; expected ", to_string(shape));
            }
            ++used;
            return &found->second;
        };
        const Shape& shape = parameters_[place].second->value.shape();
        const BasicTensor<T>* first = take(".exp_avg", shape);
        const BasicTensor<T>* second = take(".exp_avg_sq", shape);
        const BasicTensor<T>* step = take(".step", Shape{});
        if (first == nullptr && second == nullptr && step == nullptr) {
            continue;
        }
        if (first == nullptr || second == nullptr || step == nullptr) {
            fail(ErrorCode::shape_mismatch, "AdamW: of '", name, "' there is only a part; expected ", name,
                 ".exp_avg, .exp_avg_sq and .step");
        }
        const T steps = step->data()[0];
        constexpr T kMost = T{1 << 24};  // beyond it a float skips whole numbers
        if (!(steps >= 1 && steps <= kMost) || std::floor(steps) != steps) {
            fail(ErrorCode::shape_mismatch, "AdamW: '", name, ".step' is ", steps,
                 "; expected a whole number from 1 to ", kMost);
        }
        loaded[place] = {*first, *second, static_cast<std::int64_t>(steps)};
    }
    if (used != state.size()) {
        for (const auto& [key, tensor] : state) {
            const std::string name = key.substr(0, key.rfind('.'));
            const bool known = std::ranges::any_of(parameters_, [&](const auto& named) { return named.first == name; });
            if (!known || !(key.ends_with(".exp_avg") || key.ends_with(".exp_avg_sq") || key.ends_with(".step"))) {
                fail(ErrorCode::shape_mismatch, "AdamW: '", key, "' belongs to no parameter of this optimizer");
            }
        }
    }
    moments_ = std::move(loaded);
}

template <class T>
double clip_gradient_norm(const ParameterList<T>& parameters, double max_norm, const Runtime& runtime) {
    if (!(max_norm > 0)) {
        fail(ErrorCode::invalid_argument, "max_norm is ", max_norm, "; expected more than 0");
    }
    const kernels::Layers<T>& kernels = kernels::layers<T>(runtime.instruction_set());
    const std::vector<Run> runs = runs_of(parameters);
    // Runs add up their own, and are then added in their order, whoever ran them.
    std::vector<double> squares(runs.size());
    for_each_run(runs, runtime, [&](const Run& run, std::int64_t index) {
        squares[static_cast<std::size_t>(index)] =
            kernels.sum_of_squares(parameters[run.place].second->gradient.data() + run.begin, run.end - run.begin);
    });
    const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
    // PyTorch's own small number keeps a norm of 0 from dividing.
    const double scale = max_norm / (norm + 1e-6);
    if (scale < 1) {
        for_each_run(runs, runtime, [&](const Run& run, std::int64_t) {
            kernels.scale(parameters[run.place].second->gradient.data() + run.begin, run.end - run.begin, scale);
        });
    }
    return norm;
}

template class Sgd<float>;
template class Sgd<double>;
template class AdamW<float>;
template class AdamW<double>;
template double clip_gradient_norm(const ParameterList<float>&, double, const Runtime&);
template double clip_gradient_norm(const ParameterList<double>&, double, const Runtime&);

}  // namespace qkv::nn
