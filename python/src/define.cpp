#include "define.hpp"

#include <algorithm>

namespace qkv::python {

void Parameters::add(const char* name, nb::object default_value) {
    parameters_.push_back({name, nb::steal(PyUnicode_InternFromString(name)), std::move(default_value)});
}

std::size_t Parameters::find(PyObject* name) const {
    const auto same = [&](const Parameter& parameter) { return parameter.text.ptr() == name; };
    auto found = std::find_if(parameters_.begin(), parameters_.end(), same);
    if (found == parameters_.end()) {  // keywords out of a dict need not be interned
        const auto equal = [&](const Parameter& parameter) {
            return PyUnicode_Compare(parameter.text.ptr(), name) == 0;
        };
        found = std::find_if(parameters_.begin(), parameters_.end(), equal);
    }
    return static_cast<std::size_t>(found - parameters_.begin());
}

std::string Parameters::names(std::size_t from) const {
    std::string text;
    for (std::size_t at = from; at < size(); ++at) {
        text += concat(at == from ? "" : ", ", name(at));
    }
    return text;
}

void Parameters::bind(nb::handle positional, nb::handle named, std::span<nb::handle> values) const {
    const auto given = static_cast<std::size_t>(PyTuple_GET_SIZE(positional.ptr()));
    const std::size_t most = std::min(positional_, size());
    if (given > most) {
        raise(PyExc_TypeError, function_, "() has ", given, " arguments without a name; expected at most ", most,
              most < size() ? concat(", and by name: ", names(most)) : "");
    }
    for (std::size_t at = 0; at < given; ++at) {
        values[at] = PyTuple_GET_ITEM(positional.ptr(), static_cast<Py_ssize_t>(at));
    }
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    for (Py_ssize_t next = 0; PyDict_Next(named.ptr(), &next, &key, &value) != 0;) {
        const std::size_t at = find(key);
        if (at == size()) {
            raise(PyExc_TypeError, function_, "() has no argument ", nb::repr(key).c_str(), "; expected ",
                  size() == 0 ? "none" : names(0));
        }
        if (values[at].is_valid()) {
            raise(PyExc_TypeError, function_, "() got ", name(at), " twice; expected it once, by place or by name");
        }
        values[at] = value;
    }
    for (std::size_t at = 0; at < size(); ++at) {
        if (!values[at].is_valid()) {
            if (!parameters_[at].default_value.is_valid()) {
                raise(PyExc_TypeError, function_, "() lacks ", name(at), "; expected ", names(0));
            }
            values[at] = parameters_[at].default_value;
        }
    }
}

}  // namespace qkv::python
