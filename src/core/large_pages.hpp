// Pages larger than the usual ones, where the system has them.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>

namespace qkv::detail {

/// The size of a huge page wherever there are any.
inline constexpr std::size_t kHugePage = std::size_t{2} << 20U;

/// A wish, for memory that begins at a multiple of kHugePage: where it is not granted the pages are small.
inline void wish_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(__linux__)
    (void)::madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}

}  // namespace qkv::detail
