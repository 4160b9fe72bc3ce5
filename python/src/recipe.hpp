// How a Python object was made: what its repr shows, and what pickle and copy make it from again.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <utility>
#include <vector>

namespace qkv::python {

namespace nb = nanobind;

/// A call of something in the package with keyword arguments.
struct Recipe {
    const char* maker = nullptr;  ///< "Mask.causal"
    std::vector<std::pair<const char*, nb::object>> arguments = {};

    /// "qkv.Mask.causal(align='top_left')"; of an array its type and shape.
    [[nodiscard]] std::string text() const;
    /// (maker, {name: value}), as qkv._copies takes it.
    [[nodiscard]] nb::tuple pair() const;
};

inline constexpr const char* kReduce = "def __reduce__(self) -> tuple[typing.Any, ...]";

/// What __reduce__ returns: that `function` of qkv._copies makes the object from `arguments`.
template <class... Argument>
[[nodiscard]] nb::tuple reduced(const char* function, const Argument&... arguments) {
    return nb::make_tuple(nb::module_::import_("qkv._copies").attr(function), nb::make_tuple(arguments...));
}

/// Defines __repr__ and __reduce__ of a class by the recipe that `recipe_of(object)` gives.
template <class Type, class RecipeOf>
void define_copies(Type& type, const RecipeOf& recipe_of) {
    using Held = typename Type::Type;
    type.def("__repr__", [recipe_of](const Held& self) { return recipe_of(self).text(); });
    type.def(
        "__reduce__", [recipe_of](const Held& self) { return reduced("make", recipe_of(self).pair()); },
        nb::sig(kReduce));
}

/// Defines a __reduce__ that refuses, for copy and pickle, saying why.
template <class Type>
void refuse_copies(Type& type, const char* why) {
    using Held = typename Type::Type;
    type.def(
        "__reduce__",
        [why](const Held&) -> nb::tuple {
            PyErr_SetString(PyExc_TypeError, why);
            throw nb::python_error();
        },
        nb::sig(kReduce));
}

}  // namespace qkv::python
