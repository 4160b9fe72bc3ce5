// Arrays that results come in.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "operand.hpp"
#include "qkv/tensor.hpp"
#include "qkv/view.hpp"

namespace qkv::python {

/// A row-major array that owns its memory: what results are where NumPy cannot be imported or has no such type
/// (bfloat16). Exports DLPack and the buffer protocol.
class Array {
public:
    Array(const Shape& shape, DType dtype);
    /// The same memory, its elements read as another type of the same size.
    [[nodiscard]] Array seen_as(DType dtype) const;

    [[nodiscard]] void* data() const noexcept { return memory_.get(); }
    [[nodiscard]] DType dtype() const noexcept { return dtype_; }
    [[nodiscard]] const Shape& shape() const noexcept { return shape_; }
    [[nodiscard]] const Shape& strides() const noexcept { return strides_; }  // in elements
    [[nodiscard]] const Shape& byte_strides() const noexcept { return byte_strides_; }
    [[nodiscard]] std::int64_t bytes() const noexcept { return bytes_; }
    [[nodiscard]] const std::shared_ptr<void>& memory() const noexcept { return memory_; }

private:
    Shape shape_;
    Shape strides_;
    Shape byte_strides_;
    DType dtype_;
    std::int64_t bytes_ = 0;
    std::shared_ptr<void> memory_;
};

/// "float32", "bfloat16", …
[[nodiscard]] const char* python_name(DType dtype) noexcept;

/// An uninitialised array for a result: NumPy's where that can be imported, `like`'s own type where that is an
/// ml_dtypes array of bfloat16, else an Array.
[[nodiscard]] nb::object new_array(const Shape& shape, DType dtype, nb::handle like = nb::handle());

/// A float tensor's values in a new array.
template <class T>
[[nodiscard]] nb::object to_array(const BasicTensor<T>& tensor);

/// The values of any float array, rounded to the nearest T. Throws as Operand does.
template <class T>
[[nodiscard]] BasicTensor<T> to_tensor(nb::handle object, const char* name);

/// A shape given as a whole number or a sequence of them. Throws ValueError or TypeError naming "shape".
[[nodiscard]] Shape to_shape(nb::handle shape);

/// A shape as a Python tuple.
[[nodiscard]] nb::object to_tuple(const Shape& shape);

void bind_array(nb::module_& module);

}  // namespace qkv::python
