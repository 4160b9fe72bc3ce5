// Defines Python functions whose refusals name the argument. nanobind's own say only that the arguments do not fit;
// here a function takes whatever it is given, and its parameters are looked up and converted one by one.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <functional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "take.hpp"

namespace qkv::python {

/// A function's parameters, as nb::arg and nb::kw_only declare them.
class Parameters {
public:
    /// `function` is what messages call it.
    explicit Parameters(std::string function) : function_(std::move(function)) {}

    template <std::uint32_t Flags, bool Locked>
    void add(const nb::arg_t<Flags, Locked>& parameter) {
        add(parameter.name_, nb::object());
    }
    template <std::uint32_t Flags, bool Locked>
    void add(const nb::arg_v_t<Flags, Locked>& parameter) {
        add(parameter.name_, parameter.value);
    }
    void add(nb::kw_only) { positional_ = parameters_.size(); }

    [[nodiscard]] std::size_t size() const noexcept { return parameters_.size(); }
    [[nodiscard]] const char* name(std::size_t at) const noexcept { return parameters_[at].name; }

    /// The value of each parameter, borrowed from the call or the defaults. Throws TypeError for an argument too many,
    /// missing, unknown or given twice.
    void bind(nb::handle positional, nb::handle named, std::span<nb::handle> values) const;

private:
    struct Parameter {
        const char* name;
        nb::object text;           // the name, interned as a caller's keywords are
        nb::object default_value;  // invalid: must be given
    };
    void add(const char* name, nb::object default_value);
    [[nodiscard]] std::size_t find(PyObject* name) const;
    [[nodiscard]] std::string names(std::size_t from) const;

    std::string function_;
    std::vector<Parameter> parameters_;
    std::size_t positional_ = SIZE_MAX;
};

namespace detail {

template <class T>
concept DescribesParameter = requires(Parameters parameters, const T& extra) { parameters.add(extra); };

/// What nanobind is told besides the parameters: signature, doc string, policies.
template <class T>
auto for_nanobind(const T& extra) {
    if constexpr (DescribesParameter<T>) {
        return std::tuple<>();
    } else {
        return std::tuple<T>(extra);
    }
}
inline std::tuple<const char*> for_nanobind(const char* doc) { return {doc}; }

template <class T>
void add_parameter(Parameters& parameters, const T& extra) {
    if constexpr (DescribesParameter<T>) {
        parameters.add(extra);
    }
}

/// Calls `function` with `self`, if any, and the arguments of a Python call.
template <class Result, class... Given, class Function, std::size_t... At, class... Self>
Result call(const Function& function, const Parameters& parameters, nb::handle positional, nb::handle named,
            std::index_sequence<At...> /*places*/, Self&&... self) {
    std::array<nb::handle, sizeof...(Given)> values;
    parameters.bind(positional, named, values);
    return function(std::forward<Self>(self)..., take<Given>(values[At], parameters.name(At))...);
}

template <class Function, class Result, class... Given>
auto free_function(Function function, Parameters parameters, std::function<Result(Given...)> /*type*/) {
    return [function = std::move(function), parameters = std::move(parameters)](nb::args args, nb::kwargs kwargs) {
        return call<Result, Given...>(function, parameters, args, kwargs, std::index_sequence_for<Given...>());
    };
}

template <class Function, class Result, class Self, class... Given>
auto method(Function function, Parameters parameters, std::function<Result(Self, Given...)> /*type*/) {
    return [function = std::move(function), parameters = std::move(parameters)](Self self, nb::args args,
                                                                                nb::kwargs kwargs) {
        return call<Result, Given...>(function, parameters, args, kwargs, std::index_sequence_for<Given...>(),
                                      std::forward<Self>(self));
    };
}

template <class... Extra>
Parameters parameters_of(nb::handle scope, const char* name, const Extra&... extra) {
    // A constructor goes by its class's name.
    const bool constructor = std::string_view(name) == "__init__";
    Parameters parameters(constructor ? nb::cast<std::string>(scope.attr("__name__")) : std::string(name));
    (add_parameter(parameters, extra), ...);
    return parameters;
}

}  // namespace detail

/// Defines a function of a module, with the annotations of nb::module_::def. nb::sig is needed: nanobind sees no types.
template <class Function, class... Extra>
void define(nb::module_& module, const char* name, Function function, const Extra&... extra) {
    using Type = decltype(std::function{function});
    auto wrapped = detail::free_function(std::move(function), detail::parameters_of(module, name, extra...), Type());
    std::apply([&](const auto&... rest) { module.def(name, std::move(wrapped), rest...); },
               std::tuple_cat(detail::for_nanobind(extra)...));
}

/// Defines a method, or a constructor "__init__", of a class.
template <class Class, class... Base, class Function, class... Extra>
void define(nb::class_<Class, Base...>& type, const char* name, Function function, const Extra&... extra) {
    using Type = decltype(std::function{function});
    auto wrapped = detail::method(std::move(function), detail::parameters_of(type, name, extra...), Type());
    std::apply([&](const auto&... rest) { type.def(name, std::move(wrapped), rest...); },
               std::tuple_cat(detail::for_nanobind(extra)...));
}

/// Defines a static method of a class.
template <class Class, class... Base, class Function, class... Extra>
void define_static(nb::class_<Class, Base...>& type, const char* name, Function function, const Extra&... extra) {
    using Type = decltype(std::function{function});
    auto wrapped = detail::free_function(std::move(function), detail::parameters_of(type, name, extra...), Type());
    std::apply([&](const auto&... rest) { type.def_static(name, std::move(wrapped), rest...); },
               std::tuple_cat(detail::for_nanobind(extra)...));
}

}  // namespace qkv::python
