#include "runtime.hpp"

#include <nanobind/stl/shared_ptr.h>

#include <cstdlib>
#include <string>

#include "raise.hpp"

namespace qkv::python {

namespace {

/// QKV_NUM_THREADS, or 0 (one per hardware thread) where it is not set. Throws ValueError for anything but a number.
std::int64_t threads_of_environment() {
    const char* text = std::getenv("QKV_NUM_THREADS");
    if (text == nullptr || *text == '\0') {
        return 0;
    }
    char* end = nullptr;
    const long threads = std::strtol(text, &end, 10);
    if (*end != '\0') {
        raise(PyExc_ValueError, "QKV_NUM_THREADS is '", text, "'; expected a whole number");
    }
    return threads;
}

/// Made by the first call that needs it, read and replaced with the GIL held. Never destroyed: threads may still be at
/// work when the interpreter ends.
std::shared_ptr<const Runtime>& default_runtime() {
    static auto* runtime =
        new std::shared_ptr<const Runtime>(std::make_shared<const Runtime>(threads_of_environment()));
    return *runtime;
}

}  // namespace

std::shared_ptr<const Runtime> runtime_of(nb::handle runtime) {
    if (runtime.is_none()) {
        return default_runtime();
    }
    std::shared_ptr<Runtime> given;
    if (!nb::try_cast(runtime, given)) {
        raise(PyExc_TypeError, "runtime is a ", Py_TYPE(runtime.ptr())->tp_name, "; expected a qkv.Runtime or None");
    }
    return given;
}

std::shared_ptr<const Runtime> runtime_with(std::int64_t threads) {
    static auto* last = new std::shared_ptr<const Runtime>();
    if (!*last || (*last)->threads() != threads) {
        *last = std::make_shared<const Runtime>(threads);
    }
    return *last;
}

void bind_runtime(nb::module_& module) {
    nb::class_<Runtime>(
        module, "Runtime",
        "A number of threads of its own. Results never depend on it. May be shared between threads and\n"
        "used after fork.")
        .def(nb::init<std::int64_t>(), nb::arg("threads") = 0,
             "threads counts the calling thread; 0 means one per hardware thread.")
        .def_prop_ro("threads", &Runtime::threads, "How many tasks can run at once.");
    module.def(
        "set_threads", [](std::int64_t threads) { default_runtime() = std::make_shared<const Runtime>(threads); },
        nb::arg("threads"),
        "How many threads calls without a `runtime` use in this process; 0 means one per hardware thread.");
    module.def(
        "get_threads", [] { return default_runtime()->threads(); },
        "How many threads calls without a `runtime` use: QKV_NUM_THREADS, else one per hardware thread.");
}

}  // namespace qkv::python
