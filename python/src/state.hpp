// Named tensors between Python dicts and the library.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "array.hpp"
#include "qkv/tensor.hpp"
#include "raise.hpp"

namespace qkv::python {

template <class T>
[[nodiscard]] nb::dict to_dict(const StateDict<T>& state) {
    nb::dict dict;
    for (const auto& [name, tensor] : state) {
        dict[nb::str(name.c_str(), name.size())] = to_array(tensor);
    }
    return dict;
}

/// Any mapping of names to float arrays. Throws TypeError naming `argument`, or the entry.
[[nodiscard]] inline StateDict<float> to_state(nb::handle mapping, const char* argument) {
    if (PyMapping_Check(mapping.ptr()) == 0 || !nb::hasattr(mapping, "items")) {
        raise(PyExc_TypeError, argument, " is a ", Py_TYPE(mapping.ptr())->tp_name,
              "; expected a mapping of names to arrays");
    }
    StateDict<float> state;
    for (const nb::handle item : mapping.attr("items")()) {
        if (!PyUnicode_Check(item[0].ptr())) {
            raise(PyExc_TypeError, argument, " has a key that is no str: ", nb::repr(item[0]).c_str());
        }
        const auto name = nb::cast<std::string>(item[0]);
        state.insert_or_assign(name, to_tensor<float>(nb::object(item[1]), name.c_str()));
    }
    return state;
}

/// A bool array of any rank, or a sequence of bools, in row-major order. Throws TypeError naming the argument.
[[nodiscard]] std::vector<bool> to_flags(nb::handle object, const char* name);

}  // namespace qkv::python
