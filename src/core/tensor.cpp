#include "qkv/tensor.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace qkv {

std::string to_string(const Shape& shape) {
    std::string text = "[";
    for (std::size_t dim = 0; dim < shape.size(); ++dim) {
        if (dim != 0) {
            text += ", ";
        }
        text += std::to_string(shape[dim]);
    }
    return text + "]";
}

std::int64_t element_count(const Shape& shape) {
    // A zero anywhere makes the tensor empty, so look for negatives first and let zero end the product: otherwise
    // [2^32, 2^32, 0] would be refused or accepted depending on the order of its dimensions.
    for (const std::int64_t size : shape) {
        if (size < 0) {
            fail(ErrorCode::out_of_range, "shape ", to_string(shape), " has a negative size");
        }
    }
    if (std::ranges::find(shape, 0) != shape.end()) {
        return 0;
    }
    std::int64_t count = 1;
    for (const std::int64_t size : shape) {
        count = checked_multiply(count, size, "shape " + to_string(shape));
    }
    return count;
}

namespace {

/// `make(count)`, or an error that says what does not fit.
template <class T, class Make>
auto allocated(const Shape& shape, const Make& make) {
    const std::int64_t count = element_count(shape);
    try {
        return make(static_cast<std::size_t>(count));
    } catch (const std::exception&) {  // bad_alloc and length_error both mean: it does not fit
        fail(ErrorCode::out_of_memory, "no memory for a tensor of shape ", to_string(shape), " (", count, " × ",
             sizeof(T), " bytes)");
    }
}

void check_count(const Shape& shape, std::size_t values) {
    const std::int64_t count = element_count(shape);
    if (count != static_cast<std::int64_t>(values)) {
        fail(ErrorCode::shape_mismatch, "tensor of shape ", to_string(shape), " needs ", count, " values, got ",
             values);
    }
}

}  // namespace

template <class T>
BasicTensor<T>::BasicTensor(Shape shape)
    : shape_(std::move(shape)), data_(allocated<T>(shape_, [](std::size_t count) { return Elements(count, T{0}); })) {}

template <class T>
BasicTensor<T>::BasicTensor(Shape shape, const std::vector<T>& values) : shape_(std::move(shape)) {
    check_count(shape_, values.size());
    data_ = allocated<T>(shape_, [&values](std::size_t) { return Elements(values.begin(), values.end()); });
}

template <class T>
BasicTensor<T> BasicTensor<T>::unwritten(Shape shape) {
    Elements elements = allocated<T>(shape, [](std::size_t count) { return Elements(count); });
    return joined(std::move(shape), std::move(elements));
}

template <class T>
BasicTensor<T> BasicTensor<T>::joined(Shape shape, Elements elements) {
    check_count(shape, elements.size());
    BasicTensor tensor;
    tensor.shape_ = std::move(shape);
    tensor.data_ = std::move(elements);
    return tensor;
}

template <class T>
std::int64_t BasicTensor<T>::size(std::int64_t dim) const {
    const std::int64_t index = dim < 0 ? dim + rank() : dim;
    if (index < 0 || index >= rank()) {
        fail(ErrorCode::out_of_range, "dimension ", dim, " of a tensor of shape ", to_string(shape_));
    }
    return shape_[static_cast<std::size_t>(index)];
}

template <class T>
std::span<T> BasicTensor<T>::row(std::int64_t row) {
    const std::int64_t width = size(-1);
    return values().subspan(static_cast<std::size_t>(row * width), static_cast<std::size_t>(width));
}

template <class T>
std::span<const T> BasicTensor<T>::row(std::int64_t row) const {
    const std::int64_t width = size(-1);
    return values().subspan(static_cast<std::size_t>(row * width), static_cast<std::size_t>(width));
}

template <class T>
BasicTensor<T> BasicTensor<T>::reshaped(Shape shape) const& {
    return joined(std::move(shape), data_);
}

template <class T>
BasicTensor<T> BasicTensor<T>::reshaped(Shape shape) && {
    return joined(std::move(shape), std::move(data_));
}

template <class T>
BasicTensor<T> BasicTensor<T>::transposed() const {
    if (rank() != 2) {
        fail(ErrorCode::shape_mismatch, "transposed: expected rank 2, got shape ", to_string(shape_));
    }
    BasicTensor swapped = unwritten({shape_[1], shape_[0]});
    for (std::int64_t row = 0; row < shape_[0]; ++row) {
        for (std::int64_t column = 0; column < shape_[1]; ++column) {
            swapped(column, row) = (*this)(row, column);
        }
    }
    return swapped;
}

template class BasicTensor<float>;
template class BasicTensor<double>;

}  // namespace qkv
