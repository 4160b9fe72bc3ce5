#include "runtime.hpp"

#include <cstdlib>
#include <string>

#include "define.hpp"
#include "recipe.hpp"

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

std::shared_ptr<const Runtime> runtime_of(const Runtime* given) {
    return given == nullptr ? default_runtime() : std::shared_ptr<const Runtime>(std::shared_ptr<void>(), given);
}

std::shared_ptr<const Runtime> runtime_with(std::int64_t threads) {
    static auto* last = new std::shared_ptr<const Runtime>();
    if (!*last || (*last)->threads() != threads) {
        *last = std::make_shared<const Runtime>(threads);
    }
    return *last;
}

void bind_runtime(nb::module_& module) {
    nb::class_<Runtime> type(
        module, "Runtime",
        "A number of threads of its own. Results never depend on it. May be shared between threads and\n"
        "used after fork.");
    define(
        type, "__init__", [](Runtime* self, std::int64_t threads) { new (self) Runtime(threads); },
        nb::arg("threads") = 0, nb::sig("def __init__(self, threads: int = 0) -> None"),
        "threads counts the calling thread; 0 means one per hardware thread.");
    type.def_prop_ro("threads", &Runtime::threads, "How many tasks can run at once.");
    define_copies(type, [](const Runtime& self) { return Recipe{"Runtime", {{"threads", nb::cast(self.threads())}}}; });
    define(
        module, "set_threads",
        [](std::int64_t threads) { default_runtime() = std::make_shared<const Runtime>(threads); }, nb::arg("threads"),
        nb::sig("def set_threads(threads: int) -> None"),
        "How many threads calls without a `runtime` use in this process; 0 means one per hardware thread.");
    define(
        module, "get_threads", [] { return default_runtime()->threads(); }, nb::sig("def get_threads() -> int"),
        "How many threads calls without a `runtime` use: QKV_NUM_THREADS, else one per hardware thread.");
}

}  // namespace qkv::python
