// Rotary position embedding as a Python object.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "operand.hpp"
#include "qkv/rope.hpp"
#include "recipe.hpp"

namespace qkv::python {

/// A qkv::Rope together with the tables that it refers to, and what it was made of.
struct HeldRope {
    Rope rope;
    std::shared_ptr<const Operand> cos, sin;
    Recipe recipe;
};

void bind_rope(nb::module_& module);

}  // namespace qkv::python
