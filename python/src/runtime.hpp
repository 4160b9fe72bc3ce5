// The threads that calls run on.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "qkv/runtime.hpp"

namespace qkv::python {

namespace nb = nanobind;

/// The Runtime of a call: the given one, or the process's own for None. Throws TypeError naming `runtime`.
[[nodiscard]] std::shared_ptr<const Runtime> runtime_of(nb::handle runtime);

/// A Runtime with `threads` threads: the last one, where it has as many.
[[nodiscard]] std::shared_ptr<const Runtime> runtime_with(std::int64_t threads);

void bind_runtime(nb::module_& module);

}  // namespace qkv::python
