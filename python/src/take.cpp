#include "take.hpp"

namespace qkv::python {

namespace {

/// The value as a Python int. Throws TypeError unless it is a whole number and no bool.
nb::object index_of(nb::handle value, const char* name, const std::string& expected) {
    if (PyBool_Check(value.ptr()) || PyIndex_Check(value.ptr()) == 0) {
        refuse(value, name, expected);
    }
    nb::object number = nb::steal(PyNumber_Index(value.ptr()));
    if (!number.is_valid()) {  // an array of several numbers has __index__ too
        PyErr_Clear();
        refuse(value, name, expected);
    }
    return number;
}

/// Throws ValueError for a number that has no room in 64 bits.
[[noreturn]] void refuse_size(nb::handle number, const char* name, const std::string& expected) {
    PyErr_Clear();
    std::string text = "past all bounds";
    if (PyObject* shown = PyObject_Repr(number.ptr())) {
        text = nb::cast<std::string>(nb::steal<nb::str>(shown));
    } else {  // Python writes no number of many thousand digits
        PyErr_Clear();
    }
    raise(PyExc_ValueError, name, " is ", text, "; expected ", expected);
}

}  // namespace

void refuse(nb::handle value, const std::string& name, const std::string& expected) {
    raise(PyExc_TypeError, name, " is a ", Py_TYPE(value.ptr())->tp_name, "; expected ", expected);
}

std::int64_t to_integer(nb::handle value, const char* name, const std::string& expected) {
    const nb::object number = index_of(value, name, expected);
    const long long result = PyLong_AsLongLong(number.ptr());
    if (result == -1 && PyErr_Occurred() != nullptr) {
        refuse_size(number, name, expected + ", of at most 64 bits");
    }
    return result;
}

std::uint64_t to_seed(nb::handle value, const char* name) {
    const nb::object number = index_of(value, name, "a whole number");
    const unsigned long long result = PyLong_AsUnsignedLongLong(number.ptr());
    if (PyErr_Occurred() != nullptr) {
        refuse_size(number, name, "a whole number from 0 to 2**64 - 1");
    }
    return result;
}

double to_number(nb::handle value, const char* name, const std::string& expected) {
    if (PyBool_Check(value.ptr())) {
        refuse(value, name, expected);
    }
    const double result = PyFloat_AsDouble(value.ptr());
    if (result == -1.0 && PyErr_Occurred() != nullptr) {
        const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
        PyErr_Clear();
        if (too_large) {
            refuse_size(value, name, expected + ", of at most 64 bits");
        }
        refuse(value, name, expected);
    }
    return result;
}

std::string detail::name_of(nb::handle type) {
    // The modules' base class is the only one that is found in qkv.nn.
    const auto name = nb::cast<std::string>(type.attr("__name__"));
    return concat("a qkv.", name == "Module" ? "nn." : "", name);
}

}  // namespace qkv::python
