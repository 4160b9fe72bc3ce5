// Memory that faults when it is touched outside: pages without access at both ends.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace support {

/// `bytes` of memory that begin right after one forbidden page or end right before another, filled with 0xFF: a NaN in
/// every float type.
class Guarded {
public:
    enum class Side { begin, end };

    Guarded() = default;
    explicit Guarded(std::size_t bytes, Side side = Side::end) : bytes_(bytes) {
        const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        const std::size_t inside = (bytes + page - 1) / page * page;
        mapped_ = inside + 2 * page;
        void* block = ::mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (block == MAP_FAILED) {
            throw std::runtime_error("mmap failed");
        }
        block_ = static_cast<std::byte*>(block);
        std::byte* first = block_ + page;
        if (inside != 0) {
            ::mprotect(first, inside, PROT_READ | PROT_WRITE);
            std::memset(first, 0xFF, inside);
        }
        data_ = side == Side::begin ? first : first + (inside - bytes);
    }
    Guarded(Guarded&& other) noexcept { *this = std::move(other); }
    Guarded& operator=(Guarded&& other) noexcept {
        std::swap(block_, other.block_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(mapped_, other.mapped_);
        return *this;
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() {
        if (block_ != nullptr) {
            ::munmap(block_, mapped_);
        }
    }

    [[nodiscard]] std::byte* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

private:
    std::byte* block_ = nullptr;
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
    std::size_t mapped_ = 0;
};

}  // namespace support
