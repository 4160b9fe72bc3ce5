// An owning, contiguous, row-major tensor: what the teaching modules take and give, and what files hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qkv/error.hpp"
#include "qkv/export.h"

namespace qkv QKV_EXPORT {

/// Sizes, outermost first. A rank-0 shape holds one element.
using Shape = std::vector<std::int64_t>;

/// "[2, 6, 3]", as messages print a shape.
[[nodiscard]] std::string to_string(const Shape& shape);

/// Number of elements of `shape`. Throws Error(out_of_range) on a negative size or an overflowing product.
[[nodiscard]] std::int64_t element_count(const Shape& shape);

namespace detail {

[[nodiscard]] void* allocate_elements(std::size_t bytes);
void free_elements(void* memory, std::size_t bytes) noexcept;

/// Memory of tensors. Elements that are given no value have none, so that a result which is written whole anyway is not
/// written twice. Up to 256 MiB of what was freed last wait for the next tensors of the same sizes.
template <class T>
struct ElementAllocator {
    using value_type = T;

    ElementAllocator() = default;
    template <class U>
    ElementAllocator(const ElementAllocator<U>& /*other*/) noexcept {}  // NOLINT(google-explicit-constructor)

    [[nodiscard]] T* allocate(std::size_t count) { return static_cast<T*>(allocate_elements(count * sizeof(T))); }
    void deallocate(T* memory, std::size_t count) noexcept { free_elements(memory, count * sizeof(T)); }
    template <class U>
    void construct(U* element) noexcept {
        ::new (static_cast<void*>(element)) U;
    }
    template <class U, class... Values>
    void construct(U* element, Values&&... values) {
        ::new (static_cast<void*>(element)) U(std::forward<Values>(values)...);
    }
    friend bool operator==(const ElementAllocator&, const ElementAllocator&) = default;
};

}  // namespace detail

/// Gives back what freed tensors left for the next ones of their sizes, 256 MiB at most: for a program that has trained
/// and goes on to something else. What other threads free at the same moment may stay.
void release_idle_memory() noexcept;

/// Owning row-major tensor of float or double.
template <class T>
class BasicTensor {
public:
    using value_type = T;

    BasicTensor() : shape_{0} {}
    /// Zeros of `shape`.
    explicit BasicTensor(Shape shape);
    /// `values` in row-major order; their number must be element_count(shape).
    BasicTensor(Shape shape, const std::vector<T>& values);
    /// Elements of any value, for who writes all of them before anyone reads one.
    [[nodiscard]] static BasicTensor unwritten(Shape shape);

    [[nodiscard]] const Shape& shape() const noexcept { return shape_; }
    [[nodiscard]] std::int64_t rank() const noexcept { return static_cast<std::int64_t>(shape_.size()); }
    /// Size of dimension `dim`; negative counts from the end (-1 is the innermost).
    [[nodiscard]] std::int64_t size(std::int64_t dim) const;
    [[nodiscard]] std::int64_t numel() const noexcept { return static_cast<std::int64_t>(data_.size()); }
    [[nodiscard]] bool empty() const noexcept { return data_.empty(); }

    [[nodiscard]] T* data() noexcept { return data_.data(); }
    [[nodiscard]] const T* data() const noexcept { return data_.data(); }
    [[nodiscard]] std::span<T> values() noexcept { return data_; }
    [[nodiscard]] std::span<const T> values() const noexcept { return data_; }

    /// Element at an index per dimension, unchecked: `weights(head, query, key)`.
    template <class... Index>
    [[nodiscard]] T& operator()(Index... index) noexcept {
        return data_[static_cast<std::size_t>(offset(index...))];
    }
    template <class... Index>
    [[nodiscard]] const T& operator()(Index... index) const noexcept {
        return data_[static_cast<std::size_t>(offset(index...))];
    }

    /// Innermost row number `row`, all outer dimensions flattened.
    [[nodiscard]] std::span<T> row(std::int64_t row);
    [[nodiscard]] std::span<const T> row(std::int64_t row) const;

    /// Same elements under another shape of the same count.
    [[nodiscard]] BasicTensor reshaped(Shape shape) const&;
    [[nodiscard]] BasicTensor reshaped(Shape shape) &&;

    /// Rows and columns swapped; rank 2 only.
    [[nodiscard]] BasicTensor transposed() const;

    friend bool operator==(const BasicTensor&, const BasicTensor&) = default;

private:
    using Elements = std::vector<T, detail::ElementAllocator<T>>;

    /// Throws where their numbers differ.
    [[nodiscard]] static BasicTensor joined(Shape shape, Elements elements);

    template <class... Index>
    [[nodiscard]] std::int64_t offset(Index... index) const noexcept {
        std::int64_t flat = 0;
        std::size_t dim = 0;
        ((flat = flat * shape_[dim++] + static_cast<std::int64_t>(index)), ...);
        return flat;
    }

    Shape shape_;
    Elements data_;
};

using Tensor = BasicTensor<float>;
using Tensor64 = BasicTensor<double>;

/// Tensors by name, as model files and modules exchange them.
template <class T>
using StateDict = std::map<std::string, BasicTensor<T>>;

extern template class BasicTensor<float>;
extern template class BasicTensor<double>;

}  // namespace qkv QKV_EXPORT
