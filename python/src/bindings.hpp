// The topics of the extension module, one file each.
#pragma once

#include <nanobind/nanobind.h>

namespace qkv::python {

namespace nb = nanobind;

void bind_attention(nb::module_& module);
void bind_backward(nb::module_& module);
void bind_cache(nb::module_& module);
void bind_generator(nb::module_& module);
void bind_modules(nb::module_& module);
void bind_files(nb::module_& module);
void bind_torch_attention(nb::module_& module);

}  // namespace qkv::python
