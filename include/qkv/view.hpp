// Typed, strided, non-owning views of four dimensions: what the attention function reads and writes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>

#include "qkv/export.h"
#include "qkv/tensor.hpp"
#include "qkv/types.hpp"

namespace qkv QKV_EXPORT {

using Shape4 = std::array<std::int64_t, 4>;

/// Row-major strides of `shape`, in elements. Sizes are not checked here: whoever takes a view checks its extent.
[[nodiscard]] constexpr Shape4 contiguous_strides(const Shape4& shape) noexcept {
    Shape4 strides{};
    std::uint64_t step = 1;  // unsigned: an absurd size wraps here and is refused where the view is used
    for (std::size_t dim = 4; dim-- > 0;) {
        strides[dim] = static_cast<std::int64_t>(step);
        step *= static_cast<std::uint64_t>(shape[dim]);
    }
    return strides;
}

/// Element (i0, i1, i2, i3) lies at data + (i0 strides[0] + … + i3 strides[3]) elements. A stride of 0 repeats a
/// dimension; a negative one walks backwards. `Void` is void or const void.
template <class Void>
struct BasicTensorView {
    Void* data = nullptr;
    DType dtype = DType::f32;
    Shape4 shape{};
    Shape4 strides{};
    Device device = Device::cpu;

    [[nodiscard]] std::int64_t size(std::size_t dim) const noexcept { return shape[dim]; }
    /// No element at all.
    [[nodiscard]] bool empty() const noexcept {
        return shape[0] == 0 || shape[1] == 0 || shape[2] == 0 || shape[3] == 0;
    }
    /// Byte address of an element, unchecked.
    [[nodiscard]] auto* at(std::int64_t i0, std::int64_t i1, std::int64_t i2, std::int64_t i3) const noexcept {
        using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
        const std::int64_t offset = i0 * strides[0] + i1 * strides[1] + i2 * strides[2] + i3 * strides[3];
        return static_cast<Byte*>(data) + offset * size_of(dtype);
    }

    /// A view for reading is always at hand.
    operator BasicTensorView<const void>() const noexcept  // NOLINT(google-explicit-constructor)
        requires(!std::is_const_v<Void>)
    {
        return {data, dtype, shape, strides, device};
    }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

/// "[2, 8, 128, 64]"
template <class Void>
[[nodiscard]] std::string to_string(const BasicTensorView<Void>& view) {
    return to_string(Shape(view.shape.begin(), view.shape.end()));
}

/// A view of `data` with the given strides (in elements).
template <class T>
[[nodiscard]] auto view(T* data, const Shape4& shape, const Shape4& strides) noexcept {
    using Void = std::conditional_t<std::is_const_v<T>, const void, void>;
    return BasicTensorView<Void>{data, dtype_of<std::remove_const_t<T>>, shape, strides};
}

/// A row-major view: [batch, heads, tokens, head_dim] for queries, keys, values and context.
template <class T>
[[nodiscard]] auto view(T* data, const Shape4& shape) noexcept {
    return view(data, shape, contiguous_strides(shape));
}

/// Memory laid out [batch, tokens, heads, head_dim], seen in place as [batch, heads, tokens, head_dim].
template <class T>
[[nodiscard]] auto tokens_first(T* data, std::int64_t batch, std::int64_t tokens, std::int64_t heads,
                                std::int64_t head_dim) noexcept {
    const Shape4 strides = contiguous_strides({batch, tokens, heads, head_dim});
    return view(data, {batch, heads, tokens, head_dim}, {strides[0], strides[2], strides[1], strides[3]});
}

/// One number per head, [1, heads, 1, 1]: sinks and ALiBi slopes.
template <class T>
[[nodiscard]] auto per_head(T* data, std::int64_t heads) noexcept {
    return view(data, {1, heads, 1, 1});
}

/// One number per query row, [batch, heads, queries, 1]: lse and delta.
template <class T>
[[nodiscard]] auto per_row(T* data, std::int64_t batch, std::int64_t heads, std::int64_t queries) noexcept {
    return view(data, {batch, heads, queries, 1});
}

}  // namespace qkv QKV_EXPORT
