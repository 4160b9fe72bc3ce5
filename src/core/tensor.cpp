#include "qkv/tensor.hpp"

#include <algorithm>
#include <new>

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

template <class T>
std::vector<T> zeros(const Shape& shape) {
    const std::int64_t count = element_count(shape);
    try {
        return std::vector<T>(static_cast<std::size_t>(count));
    } catch (const std::exception&) {  // bad_alloc and length_error both mean: it does not fit
        fail(ErrorCode::out_of_memory, "no memory for a tensor of shape ", to_string(shape), " (", count, " × ",
             sizeof(T), " bytes)");
    }
}

}  // namespace

template <class T>
BasicTensor<T>::BasicTensor(Shape shape) : shape_(std::move(shape)), data_(zeros<T>(shape_)) {}

template <class T>
BasicTensor<T>::BasicTensor(Shape shape, std::vector<T> values) : shape_(std::move(shape)), data_(std::move(values)) {
    if (element_count(shape_) != numel()) {
        fail(ErrorCode::shape_mismatch, "tensor of shape ", to_string(shape_), " needs ", element_count(shape_),
             " values, got ", numel());
    }
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
    return BasicTensor(std::move(shape), data_);
}

template <class T>
BasicTensor<T> BasicTensor<T>::reshaped(Shape shape) && {
    return BasicTensor(std::move(shape), std::move(data_));
}

template <class T>
BasicTensor<T> BasicTensor<T>::transposed() const {
    if (rank() != 2) {
        fail(ErrorCode::shape_mismatch, "transposed: expected rank 2, got shape ", to_string(shape_));
    }
    BasicTensor swapped({shape_[1], shape_[0]});
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
