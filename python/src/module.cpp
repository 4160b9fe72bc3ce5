// qkv._core: the library for Python.
#include <nanobind/nanobind.h>

#include <exception>

#include "array.hpp"
#include "bindings.hpp"
#include "options.hpp"
#include "qkv/error.hpp"
#include "rope.hpp"
#include "runtime.hpp"
#include "words.hpp"

namespace {

PyObject* exception_of(qkv::ErrorCode code) {
    switch (code) {
        case qkv::ErrorCode::unsupported:
            return PyExc_TypeError;
        case qkv::ErrorCode::io:
            return PyExc_OSError;
        case qkv::ErrorCode::out_of_memory:
            return PyExc_MemoryError;
        case qkv::ErrorCode::invalid_argument:
        case qkv::ErrorCode::shape_mismatch:
        case qkv::ErrorCode::out_of_range:
        case qkv::ErrorCode::format:
            break;
    }
    return PyExc_ValueError;
}

void translate(const std::exception_ptr& thrown, void* /*payload*/) {
    try {
        std::rethrow_exception(thrown);
    } catch (const qkv::Error& error) {
        PyErr_SetString(exception_of(error.code()), qkv::python::in_python_words(error.what()).c_str());
    }
}

}  // namespace

NB_MODULE(_core, module) {
    module.doc() = "The library behind the qkv package; use what `import qkv` shows.";
    module.attr("version") = QKV_VERSION;
    nanobind::register_exception_translator(&translate);
    qkv::python::bind_array(module);
    qkv::python::bind_runtime(module);
    qkv::python::bind_options(module);
    qkv::python::bind_attention(module);
    qkv::python::bind_backward(module);
    qkv::python::bind_rope(module);
    qkv::python::bind_cache(module);
    qkv::python::bind_generator(module);
    qkv::python::bind_modules(module);
    qkv::python::bind_files(module);
    qkv::python::bind_torch_attention(module);
}
