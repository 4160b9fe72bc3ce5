// Whether two views share memory: outputs must not overlap inputs, other outputs, or themselves.
#pragma once

#include "qkv/view.hpp"

namespace qkv::detail {

/// The bytes a view spans, [begin, end), as addresses.
struct ByteRange {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
};

/// Throws Error(out_of_range) naming `name` when the extent does not fit the address space.
[[nodiscard]] ByteRange byte_range(const ConstTensorView& view, const char* name);

/// Whether two elements of the view share an address. Exact for views whose dimensions nest (any slice or transpose of
/// an array); of others it says yes.
[[nodiscard]] bool overlaps_itself(const ConstTensorView& view);

/// Whether any byte belongs to both, of which the ranges are known. Interleaved views, such as q and out in one [B, T,
/// 2, H, D] array, are told apart row by row, in time proportional to their rows and without memory; two such views of
/// which one overlaps itself count as overlapping where their ranges do.
[[nodiscard]] bool overlap(const ConstTensorView& a, const ByteRange& range_a, const ConstTensorView& b,
                           const ByteRange& range_b);

}  // namespace qkv::detail
