// The threads that calls run on.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "qkv/runtime.hpp"

namespace qkv::python {

namespace nb = nanobind;

/// The Runtime of a call: the given one, which must outlive it, or the process's own for null.
[[nodiscard]] std::shared_ptr<const Runtime> runtime_of(const Runtime* given);

/// A Runtime with `threads` threads: the last one, where it has as many.
[[nodiscard]] std::shared_ptr<const Runtime> runtime_with(std::int64_t threads);

void bind_runtime(nb::module_& module);

}  // namespace qkv::python
