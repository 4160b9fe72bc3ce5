// Scratch memory of a call: one block, handed out in order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qkv::detail {

/// Hands out arrays from a block, each aligned to a cache line. Over no block it only counts: the same code asks for a
/// call's arrays and finds out how much they take.
class Carver {
public:
    static constexpr std::size_t kAlignment = 64;

    explicit Carver(std::byte* block = nullptr) noexcept : block_(block) {}

    template <class T>
    T* take(std::int64_t count) noexcept {
        T* array = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + used_);
        const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
        used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
        return array;
    }
    [[nodiscard]] std::size_t used() const noexcept { return used_; }

private:
    std::byte* block_;
    std::size_t used_ = 0;
};

}  // namespace qkv::detail
