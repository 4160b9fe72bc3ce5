// Checks of single views and spans that validate is made of.
#pragma once

#include <initializer_list>
#include <optional>
#include <span>

#include "attention/overlap.hpp"
#include "core/check.hpp"

namespace qkv::detail {

/// Sizes not negative, extent within the address space, memory there, aligned, on the CPU.
void check_view(const ConstTensorView& view, const char* name);

/// The type is one of `types`.
void check_dtype(const ConstTensorView& view, const char* name, std::initializer_list<DType> types);

/// The shape is [expected]; `letters` says which ("[B, Hq, Tq, D]").
void check_shape(const ConstTensorView& view, const char* name, const char* letters, const Shape4& expected);

/// Elements of a row lie next to each other.
void check_unit_stride(const ConstTensorView& view, const char* name);

/// Each size is the expected one or 1; returns the view with stride 0 where it is repeated, shaped as expected.
[[nodiscard]] ConstTensorView broadcast(const ConstTensorView& view, const char* name, const char* letters,
                                        const Shape4& expected);

/// Cumulative lengths: from 0, not falling, to `total`.
void check_cumulative(std::span<const std::int64_t> starts, const char* name, std::int64_t total);

/// What an output must not touch.
struct NamedView {
    const char* name = nullptr;
    ConstTensorView view;
};

/// A view without elements, which overlaps nothing, where `view` is not given.
template <class View>
[[nodiscard]] NamedView named(const char* name, const std::optional<View>& view) {
    return {name, view ? ConstTensorView(*view) : ConstTensorView{}};
}
[[nodiscard]] inline NamedView named(const char* name, const ConstTensorView& view) { return {name, view}; }
[[nodiscard]] NamedView named_bytes(const char* name, std::span<std::byte> bytes);

/// Views that one call of check_overlap takes.
inline constexpr std::size_t kMostNamedViews = 24;

/// No output overlaps itself, another output or an input.
void check_overlap(std::span<const NamedView> outputs, std::span<const NamedView> inputs);

}  // namespace qkv::detail
