// What the attention functions share: arrays of one rank, and results that are asked for, handed in or not wanted.
#pragma once

#include <nanobind/nanobind.h>

#include "array.hpp"
#include "operand.hpp"
#include "raise.hpp"

namespace qkv::python {

/// Throws ValueError unless `operand` has the rank of `q`.
inline void check_rank(const Operand& operand, const Operand& q) {
    if (operand.rank() != q.rank()) {
        raise(PyExc_ValueError, operand.name(), " has shape ", operand.shape_text(), "; expected ", q.rank(),
              " dimensions, as q has");
    }
}

/// A query, key or value: [B, H, T, D], [H, T, D] or [T, D].
inline Operand read_input(nb::handle object, const char* name) {
    Operand operand(object, name);
    if (operand.rank() < 2 || operand.rank() > 4) {
        raise(PyExc_ValueError, name, " has shape ", operand.shape_text(),
              "; expected [B, H, T, D], [H, T, D] or [T, D]");
    }
    return operand;
}

/// The last `rank` sizes of `shape`.
inline Shape last_sizes(const Shape4& shape, int rank) { return {shape.end() - rank, shape.end()}; }

/// Something a call may write: asked for with True, handed in as an array, or not wanted (False or None).
class Wanted {
public:
    Wanted() = default;
    /// `shape` and `dtype` of the array that True asks for.
    Wanted(nb::handle argument, const char* name, const Shape& shape, DType dtype, nb::handle like = nb::handle()) {
        if (argument.is_none() || argument.ptr() == Py_False) {
            return;
        }
        array_ = argument.ptr() == Py_True ? new_array(shape, dtype, like) : nb::borrow(argument);
        memory_ = Operand(array_, name, Operand::Access::write);
    }

    [[nodiscard]] bool given() const noexcept { return memory_.given(); }
    [[nodiscard]] const Operand& memory() const noexcept { return memory_; }
    /// What the caller gets: the array, or None.
    [[nodiscard]] nb::object result() const { return given() ? array_ : nb::none(); }

private:
    nb::object array_;
    Operand memory_;
};

/// The type of lse, sinks and other sums for queries of `dtype`.
[[nodiscard]] constexpr DType sum_type(DType dtype) noexcept { return dtype == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace qkv::python
