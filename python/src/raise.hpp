// Python exceptions that name the argument.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <string>

#include "core/check.hpp"

namespace qkv::python {

namespace nb = nanobind;

template <class... Part>
[[noreturn]] void raise(PyObject* exception, const Part&... part) {
    PyErr_SetString(exception, concat(part...).c_str());
    throw nb::python_error();
}

/// The exception that Python has set becomes the cause of this one, its message the end of ours.
template <class... Part>
[[noreturn]] void raise_from_current(PyObject* exception, const Part&... part) {
    nb::python_error cause;
    std::string why;
    try {
        why = nb::cast<std::string>(nb::str(cause.value()));
        why.resize(std::min(why.size(), why.find('\n')));  // what follows is a stack trace
    } catch (const std::exception&) {
        why = "for a reason that cannot be shown";
    }
    nb::raise_from(cause, exception, "%s", concat(part..., ": ", why).c_str());
}

}  // namespace qkv::python
