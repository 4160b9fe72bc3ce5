#include "array.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <new>
#include <utility>

#include "raise.hpp"

namespace qkv::python {

namespace {

constexpr std::size_t kAlignment = 64;

constexpr dlpack::DataType dlpack_type(DType dtype) noexcept {
    const auto bits = static_cast<std::uint8_t>(size_of(dtype) * 8);
    switch (dtype) {
        case DType::bf16:
            return {dlpack::kBfloat, bits, 1};
        case DType::boolean:
            return {dlpack::kBool, bits, 1};
        default:
            return {dlpack::kFloat, bits, 1};
    }
}

/// numpy.empty and its dtype objects; looked up by the first result, kept for good.
struct NumPy {
    PyObject* empty = nullptr;
    PyObject* dtype_class = nullptr;
    PyObject* f32 = nullptr;
    PyObject* f64 = nullptr;
    PyObject* f16 = nullptr;

    NumPy() {
        PyObject* numpy = PyImport_ImportModule("numpy");
        if (numpy == nullptr) {
            if (PyErr_ExceptionMatches(PyExc_ImportError) == 0) {
                throw nb::python_error();
            }
            PyErr_Clear();
            return;
        }
        const auto module = nb::steal(numpy);
        dtype_class = nb::object(module.attr("dtype")).release().ptr();
        f32 = nb::object(module.attr("dtype")("float32")).release().ptr();
        f64 = nb::object(module.attr("dtype")("float64")).release().ptr();
        f16 = nb::object(module.attr("dtype")("float16")).release().ptr();
        empty = nb::object(module.attr("empty")).release().ptr();
    }

    [[nodiscard]] PyObject* dtype(DType wanted) const {
        switch (wanted) {
            case DType::f32:
                return f32;
            case DType::f64:
                return f64;
            case DType::f16:
                return f16;
            default:
                return nullptr;
        }
    }

    /// Held by the GIL alone: a guarded static would be waited for with the GIL in hand while the import lets go of it.
    static const NumPy& get() {
        static const NumPy* numpy = nullptr;
        if (numpy == nullptr) {
            numpy = new NumPy();
        }
        return *numpy;
    }
};

/// What a DLPack consumer keeps of an Array.
struct Exported {
    std::shared_ptr<void> memory;
    Shape shape;
    Shape strides;
};

template <class Managed>
void delete_managed(Managed* managed) {
    delete static_cast<Exported*>(managed->context);
    delete managed;
}

template <class Managed>
void delete_unused(PyObject* capsule, const char* name) {
    if (PyCapsule_IsValid(capsule, name) != 0) {
        delete_managed(static_cast<Managed*>(PyCapsule_GetPointer(capsule, name)));
    }
}

template <class Managed>
std::unique_ptr<Managed> manage(const Array& array) {
    auto exported = std::make_unique<Exported>(Exported{array.memory(), array.shape(), array.strides()});
    auto managed = std::make_unique<Managed>();
    managed->tensor = {array.data(),
                       {dlpack::kCpu, 0},
                       static_cast<std::int32_t>(array.shape().size()),
                       dlpack_type(array.dtype()),
                       exported->shape.data(),
                       exported->strides.data(),
                       0};
    managed->context = exported.release();
    managed->deleter = &delete_managed<Managed>;
    return managed;
}

nb::object export_dlpack(const Array& array, nb::handle stream, nb::handle max_version, nb::handle dl_device,
                         nb::handle copy) {
    if (!stream.is_none()) {
        raise(PyExc_BufferError, "stream is given; expected None for memory of the CPU");
    }
    if (!dl_device.is_none() && !nb::object(nb::make_tuple(dlpack::kCpu, 0)).equal(dl_device)) {
        raise(PyExc_BufferError, "dl_device is ", nb::repr(dl_device).c_str(), "; expected (1, 0), the CPU");
    }
    if (copy.ptr() == Py_True) {
        raise(PyExc_BufferError, "copy is True; an Array shares its memory, copy it where it arrives");
    }
    if (!max_version.is_none() && nb::cast<std::int64_t>(max_version[0]) >= std::int64_t{dlpack::kMajor}) {
        auto managed = manage<dlpack::Versioned>(array);
        managed->version = {dlpack::kMajor, dlpack::kMinor};
        managed->flags = 0;
        return nb::steal(PyCapsule_New(managed.release(), "dltensor_versioned", [](PyObject* capsule) {
            delete_unused<dlpack::Versioned>(capsule, "dltensor_versioned");
        }));
    }
    auto managed = manage<dlpack::Unversioned>(array);
    return nb::steal(PyCapsule_New(managed.release(), "dltensor",
                                   [](PyObject* capsule) { delete_unused<dlpack::Unversioned>(capsule, "dltensor"); }));
}

nb::object to_numpy(const Array& array, nb::handle dtype, nb::handle copy) {
    if (array.dtype() != DType::bf16) {
        return nb::module_::import_("numpy").attr("array")(array, nb::arg("dtype") = dtype, nb::arg("copy") = copy);
    }
    // NumPy takes the bits as float16.
    return nb::module_::import_("qkv._numpy").attr("bfloat16")(array.seen_as(DType::f16), dtype, copy);
}

const char* buffer_format(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32:
            return "f";
        case DType::f64:
            return "d";
        case DType::f16:
            return "e";
        case DType::boolean:
            return "?";
        case DType::bf16:
            break;
    }
    return nullptr;
}

int get_buffer(PyObject* object, Py_buffer* buffer, int flags) {
    auto* array = nb::inst_ptr<Array>(object);
    const char* format = buffer_format(array->dtype());
    if (format == nullptr) {
        PyErr_SetString(PyExc_BufferError, "bfloat16 has no format in the buffer protocol; use DLPack");
        return -1;
    }
    static std::byte nothing[1];
    *buffer = {};
    buffer->buf = array->data() == nullptr ? static_cast<void*>(nothing) : array->data();
    buffer->len = array->bytes();
    buffer->itemsize = size_of(array->dtype());
    buffer->ndim = static_cast<int>(array->shape().size());
    // The protocol's fields are not const; nobody writes through them.
    buffer->format = (flags & PyBUF_FORMAT) != 0 ? const_cast<char*>(format) : nullptr;
    static_assert(sizeof(Py_ssize_t) == sizeof(std::int64_t));
    buffer->shape = const_cast<Py_ssize_t*>(array->shape().data());
    buffer->strides = const_cast<Py_ssize_t*>(array->byte_strides().data());
    buffer->obj = Py_NewRef(object);
    return 0;
}

PyType_Slot array_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer)}, {0, nullptr}};

template <class T, class Stored>
void copy_values(const Operand& from, std::span<T> to) {
    std::array<std::int64_t, kMaxRank> index{};
    const auto* data = static_cast<const Stored*>(from.data());
    for (T& value : to) {
        std::int64_t at = 0;
        for (int dim = 0; dim < from.rank(); ++dim) {
            at += index[static_cast<std::size_t>(dim)] * from.stride(dim);
        }
        if constexpr (sizeof(Stored) == 2) {
            value = static_cast<T>(static_cast<float>(data[at]));
        } else {
            value = static_cast<T>(data[at]);
        }
        for (int dim = from.rank() - 1; dim >= 0; --dim) {
            auto& place = index[static_cast<std::size_t>(dim)];
            if (++place < from.size(dim)) {
                break;
            }
            place = 0;
        }
    }
}

}  // namespace

const char* python_name(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32:
            return "float32";
        case DType::f64:
            return "float64";
        case DType::f16:
            return "float16";
        case DType::bf16:
            return "bfloat16";
        case DType::boolean:
            return "bool";
    }
    return "unknown";
}

Array::Array(const Shape& shape, DType dtype) : shape_(shape), strides_(shape.size()), dtype_(dtype) {
    std::int64_t step = 1;
    for (std::size_t dim = shape.size(); dim-- > 0;) {
        strides_[dim] = step;
        step *= shape[dim];
    }
    bytes_ = element_count(shape) * size_of(dtype);
    for (const std::int64_t stride : strides_) {
        byte_strides_.push_back(stride * size_of(dtype));
    }
    const std::align_val_t alignment{kAlignment};
    memory_ = std::shared_ptr<void>(::operator new(static_cast<std::size_t>(bytes_), alignment),
                                    [](void* memory) { ::operator delete(memory, std::align_val_t{kAlignment}); });
}

Array Array::seen_as(DType dtype) const {
    Array seen = *this;
    seen.dtype_ = dtype;
    return seen;
}

nb::object to_tuple(const Shape& shape) {
    nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
    for (std::size_t dim = 0; dim < shape.size(); ++dim) {
        PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(dim), PyLong_FromLongLong(shape[dim]));
    }
    return tuple;
}

nb::object new_array(const Shape& shape, DType dtype, nb::handle like) {
    const NumPy& numpy = NumPy::get();
    if (numpy.empty != nullptr) {
        nb::object type = nb::borrow(numpy.dtype(dtype));
        if (dtype == DType::bf16 && like.is_valid()) {
            nb::object own = nb::getattr(like, "dtype", nb::none());
            if (PyObject_IsInstance(own.ptr(), numpy.dtype_class) == 1) {
                type = std::move(own);
            }
        }
        if (type.is_valid()) {
            const nb::object sizes = to_tuple(shape);
            PyObject* const arguments[] = {sizes.ptr(), type.ptr()};
            PyObject* array = PyObject_Vectorcall(numpy.empty, arguments, 2, nullptr);
            if (array == nullptr) {
                throw nb::python_error();
            }
            return nb::steal(array);
        }
    }
    return nb::cast(Array(shape, dtype));
}

template <class T>
nb::object to_array(const BasicTensor<T>& tensor) {
    nb::object array = new_array(tensor.shape(), dtype_of<T>);
    const Operand memory(array, "result", Operand::Access::write);
    if (!tensor.empty()) {
        std::memcpy(memory.data(), tensor.data(), static_cast<std::size_t>(tensor.numel()) * sizeof(T));
    }
    return array;
}

template <class T>
BasicTensor<T> to_tensor(nb::handle object, const char* name) {
    const Operand operand(object, name);
    Shape shape;
    for (int dim = 0; dim < operand.rank(); ++dim) {
        shape.push_back(operand.size(dim));
    }
    BasicTensor<T> tensor(std::move(shape));
    switch (operand.dtype()) {
        case DType::f32:
            copy_values<T, float>(operand, tensor.values());
            break;
        case DType::f64:
            copy_values<T, double>(operand, tensor.values());
            break;
        case DType::f16:
            copy_values<T, Float16>(operand, tensor.values());
            break;
        case DType::bf16:
            copy_values<T, BFloat16>(operand, tensor.values());
            break;
        case DType::boolean:
            raise(PyExc_TypeError, name, " has elements of type bool; expected a float type");
    }
    return tensor;
}

template nb::object to_array(const BasicTensor<float>&);
template nb::object to_array(const BasicTensor<double>&);
template BasicTensor<float> to_tensor(nb::handle, const char*);
template BasicTensor<double> to_tensor(nb::handle, const char*);

Shape to_shape(nb::handle shape) {
    Shape sizes = one_or_more_integers(shape, "shape");
    (void)element_count(sizes);
    return sizes;
}

void bind_array(nb::module_& module) {
    nb::class_<Array>(
        module, "Array", nb::type_slots(array_slots),
        "A row-major array that owns its memory: what results are where NumPy cannot be imported or has\n"
        "no such type (bfloat16). `numpy.asarray(array)` and `torch.from_dlpack(array)` share its memory.")
        .def_prop_ro(
            "shape", [](const Array& array) { return to_tuple(array.shape()); },
            nb::sig("def shape(self) -> tuple[int, ...]"), "Sizes, outermost first.")
        .def_prop_ro(
            "dtype", [](const Array& array) { return python_name(array.dtype()); },
            "'float32', 'float64', 'float16' or 'bfloat16'.")
        .def_prop_ro("nbytes", &Array::bytes, "Bytes of its elements.")
        .def("__len__", [](const Array& array) { return array.shape().empty() ? 0 : array.shape()[0]; })
        .def("__repr__",
             [](const Array& array) {
                 return concat("qkv.Array(shape=", nb::repr(to_tuple(array.shape())).c_str(),
                               ", dtype=", python_name(array.dtype()), ")");
             })
        .def("__array__", &to_numpy, nb::arg("dtype") = nb::none(), nb::arg("copy") = nb::none(),
             nb::sig("def __array__(self, dtype: typing.Any = None, copy: bool | None = None) -> typing.Any"),
             "What numpy.asarray asks for where the buffer protocol has no such type: an ml_dtypes array that shares\n"
             "the memory, or with a dtype a copy as that.")
        .def("__dlpack__", &export_dlpack, nb::kw_only(), nb::arg("stream") = nb::none(),
             nb::arg("max_version") = nb::none(), nb::arg("dl_device") = nb::none(), nb::arg("copy") = nb::none(),
             nb::sig("def __dlpack__(self, *, stream: None = None, max_version: tuple[int, int] | None = None, "
                     "dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> object"),
             "A DLPack capsule that shares the memory.")
        .def(
            "__dlpack_device__", [](const Array&) { return std::pair(dlpack::kCpu, 0); },
            nb::sig("def __dlpack_device__(self) -> tuple[int, int]"), "(1, 0): the CPU.");
}

}  // namespace qkv::python
