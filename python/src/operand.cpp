#include "operand.hpp"

#include <cstring>
#include <utility>

#include "take.hpp"

namespace qkv::python {

namespace {

/// The DLPack type of a buffer's format character, native order; lanes 0: none of ours.
dlpack::DataType type_of_format(const char* format, Py_ssize_t item) {
    if (format == nullptr) {
        return {dlpack::kUInt, 8, 1};
    }
    if (*format == '@' || *format == '=' || *format == '<') {
        ++format;
    }
    if (*format == '\0' || format[1] != '\0' || item < 1 || item > 8) {
        return {0, 0, 0};
    }
    const auto bits = static_cast<std::uint8_t>(item * 8);
    if (std::strchr("efd", *format) != nullptr) {
        return {dlpack::kFloat, bits, 1};
    }
    if (std::strchr("bhilqn", *format) != nullptr) {
        return {dlpack::kInt, bits, 1};
    }
    if (std::strchr("BHILQN", *format) != nullptr) {
        return {dlpack::kUInt, bits, 1};
    }
    return *format == '?' ? dlpack::DataType{dlpack::kBool, 8, 1} : dlpack::DataType{0, 0, 0};
}

nb::object attribute(nb::handle object, const char* name) {
    PyObject* found = PyObject_GetAttrString(object.ptr(), name);
    if (found == nullptr) {
        PyErr_Clear();
    }
    return nb::steal(found);
}

}  // namespace

Operand::Operand(nb::handle object, const char* name, Access access) : name_(name) {
    try {
        if (!read_buffer(object, access) && !read_exchange(object, access) && !read_dlpack(object)) {
            refuse(PyExc_TypeError, concat("is a ", Py_TYPE(object.ptr())->tp_name,
                                           "; expected an array with the buffer protocol or DLPack"));
        }
        if ((access == Access::write || access == Access::write_new) && read_only_) {
            refuse(PyExc_BufferError, "is read-only; expected memory that can be written");
        }
    } catch (...) {
        release();
        throw;
    }
}

Operand::Operand(Operand&& other) noexcept { *this = std::move(other); }

Operand& Operand::operator=(Operand&& other) noexcept {
    release();
    name_ = std::exchange(other.name_, nullptr);
    data_ = other.data_;
    type_ = other.type_;
    rank_ = other.rank_;
    read_only_ = other.read_only_;
    shape_ = other.shape_;
    strides_ = other.strides_;
    buffer_ = std::exchange(other.buffer_, Py_buffer{});
    versioned_ = std::exchange(other.versioned_, nullptr);
    unversioned_ = std::exchange(other.unversioned_, nullptr);
    borrowed_from_ = std::move(other.borrowed_from_);
    return *this;
}

void Operand::release() noexcept {
    if (buffer_.obj != nullptr) {
        PyBuffer_Release(&buffer_);
    }
    if (versioned_ != nullptr && versioned_->deleter != nullptr) {
        versioned_->deleter(versioned_);
    }
    if (unversioned_ != nullptr && unversioned_->deleter != nullptr) {
        unversioned_->deleter(unversioned_);
    }
    versioned_ = nullptr;
    unversioned_ = nullptr;
    borrowed_from_.reset();
}

void Operand::refuse(PyObject* exception, const std::string& what) const { raise(exception, name_, " ", what); }

bool Operand::read_buffer(nb::handle object, Access access) {
    if (!PyObject_CheckBuffer(object.ptr())) {
        return false;
    }
    // Read-only memory is asked for as such, so that our message is given and not the exporter's.
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        buffer_.obj = nullptr;
        const nb::object dtype = attribute(object, "dtype");
        const nb::object type = dtype ? attribute(dtype, "name") : nb::object();
        if (type && nb::isinstance<nb::str>(type) && nb::cast<std::string>(type) == "bfloat16") {
            read_bfloat16(object, access);
            return true;
        }
        return false;
    }
    type_ = type_of_format(buffer_.format, buffer_.itemsize);
    if (type_.lanes == 0) {
        refuse(PyExc_TypeError, concat("has elements of format '", buffer_.format == nullptr ? "" : buffer_.format,
                                       "'; expected float32, float64, float16, bfloat16 or bool in native order"));
    }
    if (buffer_.ndim > kMaxRank) {
        refuse(PyExc_ValueError, concat("has ", buffer_.ndim, " dimensions; expected at most ", kMaxRank));
    }
    data_ = buffer_.buf;
    rank_ = buffer_.ndim;
    read_only_ = buffer_.readonly != 0;
    for (int dim = 0; dim < rank_; ++dim) {
        const auto at = static_cast<std::size_t>(dim);
        shape_[at] = buffer_.shape[dim];
        if (shape_[at] > 1 && buffer_.strides[dim] % buffer_.itemsize != 0) {
            refuse(PyExc_ValueError,
                   concat("has a stride of ", buffer_.strides[dim], " bytes; expected a multiple of its elements of ",
                          buffer_.itemsize, " bytes"));
        }
        strides_[at] = buffer_.strides[dim] / buffer_.itemsize;
    }
    return true;
}

void Operand::read_bfloat16(nb::handle object, Access access) {
    const nb::object bits = object.attr("view")("uint16");
    *this = Operand(bits, name_, access);
    type_ = {dlpack::kBfloat, 16, 1};
}

/// What __dlpack__ and torch's own operations see to, and the exchange table does not.
void Operand::respect_autograd(nb::handle tensor, Access access) const {
    if (const nb::object grad = attribute(tensor, "requires_grad"); grad.is_valid() && grad.ptr() == Py_True) {
        refuse(PyExc_BufferError,
               access == Access::read
                   ? "requires grad, which would be lost here; call detach(), or use qkv.torch"
                   : "requires grad, and what is filled does not support automatic differentiation; call detach()");
    }
    // Backward refuses a tensor that was saved for it and written since. Inference tensors do not count writes.
    if (access == Access::write && attribute(tensor, "_version").is_valid()) {
        nb::module_::import_("torch.autograd.graph").attr("increment_version")(tensor);
    }
}

bool Operand::read_exchange(nb::handle object, Access access) {
    const nb::object capsule =
        attribute(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()))), "__dlpack_c_exchange_api__");
    if (!capsule || !PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        return false;
    }
    const auto* table =
        static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (table != nullptr && table->version.major != dlpack::kMajor) {
        table = table->previous;
    }
    if (table == nullptr) {
        return false;
    }
    if (access == Access::read || access == Access::write) {
        respect_autograd(object, access);
    }
    dlpack::Tensor tensor{};
    if (table->borrow != nullptr) {
        if (table->borrow(object.ptr(), &tensor) != 0) {
            raise_from_current(PyExc_BufferError, name_, " cannot be read");
        }
        borrowed_from_ = nb::borrow(object);
        take(tensor);
        return true;
    }
    if (table->from_object(object.ptr(), &versioned_) != 0) {
        versioned_ = nullptr;
        raise_from_current(PyExc_BufferError, name_, " cannot be read");
    }
    read_only_ = (versioned_->flags & dlpack::kReadOnly) != 0;
    take(versioned_->tensor);
    return true;
}

bool Operand::read_dlpack(nb::handle object) {
    const nb::object method = attribute(object, "__dlpack__");
    if (!method) {
        return false;
    }
    nb::object capsule;
    try {
        capsule = method(nb::arg("max_version") = nb::make_tuple(dlpack::kMajor, dlpack::kMinor));
    } catch (nb::python_error& error) {
        if (!error.matches(PyExc_TypeError)) {
            error.restore();
            raise_from_current(PyExc_BufferError, name_, " cannot be read");
        }
    }
    if (!capsule) {  // a producer older than version 1 knows no max_version
        try {
            capsule = method();
        } catch (nb::python_error& error) {
            error.restore();
            raise_from_current(PyExc_BufferError, name_, " cannot be read");
        }
    }
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        auto* tensor = static_cast<dlpack::Versioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        if (tensor->version.major != dlpack::kMajor) {
            refuse(PyExc_BufferError, concat("speaks version ", tensor->version.major, " of DLPack; expected 1"));
        }
        PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
        versioned_ = tensor;
        read_only_ = (tensor->flags & dlpack::kReadOnly) != 0;
        take(tensor->tensor);
        return true;
    }
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        unversioned_ = static_cast<dlpack::Unversioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
        PyCapsule_SetName(capsule.ptr(), "used_dltensor");
        take(unversioned_->tensor);
        return true;
    }
    refuse(PyExc_BufferError, "has a __dlpack__ that returns no capsule of a tensor");
}

void Operand::take(const dlpack::Tensor& tensor) {
    if (tensor.device.type != dlpack::kCpu) {
        refuse(PyExc_BufferError,
               concat("lies on DLPack device ", tensor.device.type, ":", tensor.device.id, "; expected the CPU (1)"));
    }
    if (tensor.rank < 0 || tensor.rank > kMaxRank) {
        refuse(PyExc_ValueError, concat("has ", tensor.rank, " dimensions; expected at most ", kMaxRank));
    }
    data_ = tensor.data == nullptr ? nullptr : static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
    type_ = tensor.dtype;
    rank_ = tensor.rank;
    std::int64_t step = 1;
    for (int dim = rank_ - 1; dim >= 0; --dim) {
        const auto at = static_cast<std::size_t>(dim);
        shape_[at] = tensor.shape[dim];
        strides_[at] = tensor.strides == nullptr ? step : tensor.strides[dim];
        step *= shape_[at];
    }
}

std::string Operand::type_name() const {
    if (type_.lanes != 1) {
        return concat("vectors of ", type_.lanes);
    }
    const int bits = type_.bits;
    switch (type_.code) {
        case dlpack::kInt:
            return concat("int", bits);
        case dlpack::kUInt:
            return concat("uint", bits);
        case dlpack::kFloat:
            return concat("float", bits);
        case dlpack::kBfloat:
            return concat("bfloat", bits);
        case dlpack::kComplex:
            return concat("complex", bits);
        case dlpack::kBool:
            return "bool";
        default:
            return concat("DLPack type ", int{type_.code}, " of ", bits, " bits");
    }
}

std::string Operand::shape_text() const {
    std::string text = "(";
    for (int dim = 0; dim < rank_; ++dim) {
        text += concat(dim == 0 ? "" : ", ", size(dim));
    }
    return text + (rank_ == 1 ? ",)" : ")");
}

DType Operand::dtype() const {
    if (type_.lanes == 1) {
        if (type_.code == dlpack::kFloat && type_.bits == 32) {
            return DType::f32;
        }
        if (type_.code == dlpack::kFloat && type_.bits == 64) {
            return DType::f64;
        }
        if (type_.code == dlpack::kFloat && type_.bits == 16) {
            return DType::f16;
        }
        if (type_.code == dlpack::kBfloat && type_.bits == 16) {
            return DType::bf16;
        }
        if (type_.code == dlpack::kBool && type_.bits == 8) {
            return DType::boolean;
        }
    }
    refuse(PyExc_TypeError,
           concat("has elements of type ", type_name(), "; expected float32, float64, float16, bfloat16 or bool"));
}

TensorView Operand::view() const {
    TensorView view{data_, dtype(), {1, 1, 1, 1}, {0, 0, 0, 1}, Device::cpu};
    if (rank_ > 4) {
        refuse(PyExc_ValueError, concat("has shape ", shape_text(), "; expected at most 4 dimensions"));
    }
    for (int dim = 0; dim < rank_; ++dim) {
        const auto at = static_cast<std::size_t>(4 - rank_ + dim);
        view.shape[at] = size(dim);
        view.strides[at] = stride(dim);
    }
    return view;
}

TensorView Operand::row_view() const {
    if (rank_ > 3) {
        refuse(PyExc_ValueError,
               concat("has shape ", shape_text(), "; expected one number per query row, [B, Hq, Tq]"));
    }
    TensorView view{data_, dtype(), {1, 1, 1, 1}, {0, 0, 0, 1}, Device::cpu};
    for (int dim = 0; dim < rank_; ++dim) {
        const auto at = static_cast<std::size_t>(3 - rank_ + dim);
        view.shape[at] = size(dim);
        view.strides[at] = stride(dim);
    }
    return view;
}

TensorView Operand::head_view() const {
    if (rank_ != 1 && rank_ != 2) {
        refuse(PyExc_ValueError, concat("has shape ", shape_text(), "; expected one number per head, [Hq] or [B, Hq]"));
    }
    TensorView view{data_, dtype(), {1, size(rank_ - 1), 1, 1}, {0, stride(rank_ - 1), 0, 1}, Device::cpu};
    if (rank_ == 2) {
        view.shape[0] = size(0);
        view.strides[0] = stride(0);
    }
    return view;
}

std::vector<std::int64_t> Operand::integers() const {
    const bool sized = type_.bits == 8 || type_.bits == 16 || type_.bits == 32 || type_.bits == 64;
    const bool whole = type_.lanes == 1 && sized && (type_.code == dlpack::kInt || type_.code == dlpack::kUInt);
    if (!whole) {
        refuse(PyExc_TypeError, concat("has elements of type ", type_name(), "; expected whole numbers"));
    }
    if (rank_ != 1) {
        refuse(PyExc_ValueError, concat("has shape ", shape_text(), "; expected one dimension"));
    }
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(size(0)));
    for (std::size_t n = 0; n < numbers.size(); ++n) {
        const auto* from = static_cast<const std::byte*>(data_) +
                           static_cast<std::int64_t>(n) * stride(0) * static_cast<std::int64_t>(type_.bits / 8);
        std::uint64_t bits = 0;
        std::memcpy(&bits, from, type_.bits / 8U);  // little-endian: the low bytes
        const unsigned unused = 64U - type_.bits;
        numbers[n] = type_.code == dlpack::kInt ? static_cast<std::int64_t>(bits << unused) >> unused
                                                : static_cast<std::int64_t>(bits);
        if (type_.code == dlpack::kUInt && numbers[n] < 0) {
            refuse(PyExc_ValueError, concat("holds ", bits, ", which does not fit 63 bits"));
        }
    }
    return numbers;
}

std::vector<std::int64_t> integers(nb::handle object, const char* name) {
    if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) {
        return Operand(object, name).integers();
    }
    std::vector<std::int64_t> numbers;
    for (const nb::handle item : object) {
        const bool plain = PyLong_CheckExact(item.ptr());
        int overflow = 0;
        const long long number = plain ? PyLong_AsLongLongAndOverflow(item.ptr(), &overflow) : 0;
        // The item's place is put into words only where they may be needed.
        numbers.push_back(plain && overflow == 0 ? number
                                                 : to_integer(item, concat(name, "[", numbers.size(), "]").c_str()));
    }
    return numbers;
}

std::vector<std::int64_t> one_or_more_integers(nb::handle object, const char* name) {
    if (PyIndex_Check(object.ptr()) != 0 && PyObject_Size(object.ptr()) < 0) {  // an array has a size
        PyErr_Clear();
        return {to_integer(object, name)};
    }
    return integers(object, name);
}

}  // namespace qkv::python
