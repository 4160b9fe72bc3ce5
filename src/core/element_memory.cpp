// Memory of tensors: large pages for large ones, and a shelf of what was given back.
//
// A step of a training frees the tensors that the next one asks for. To hand their pages to the kernel and have them
// zeroed and mapped again, 2,000 times a step for the default model, was a tenth of its time.
#include <algorithm>
#include <array>
#include <cstddef>
#include <mutex>
#include <new>
#include <span>
#include <thread>

#include "core/large_pages.hpp"
#include "qkv/tensor.hpp"

namespace qkv::detail {

namespace {

constexpr std::size_t kCacheLine = 64;

/// The products of a layer walk down columns of rows that are kilobytes apart; with pages of 4 KiB the address of every
/// other number is looked up anew.
std::align_val_t alignment_of(std::size_t bytes) {
    return std::align_val_t(bytes < kHugePage ? kCacheLine : kHugePage);
}

/// The newest blocks that were freed, for whoever asks for the very same size.
class Shelf {
public:
    static constexpr std::size_t kLeast = std::size_t{64} << 10U;  // below, malloc keeps pages itself
    static constexpr std::size_t kLargest = std::size_t{16} << 20U;
    static constexpr std::size_t kMost = std::size_t{256} << 20U;  // all together

    /// There before anything runs, and never destroyed: tensors may outlive whatever ends with the program.
    static Shelf& instance() noexcept {
        static constinit Shelf shelf;
        return shelf;
    }

    /// nullptr if there is none.
    void* take(std::size_t bytes) noexcept {
        // Somebody else's turn, or a lock that nobody holds since a fork: memory comes from elsewhere then.
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (!lock) {
            return nullptr;
        }
        const auto kept = std::span(blocks_).first(count_);
        const auto found =
            std::find_if(kept.rbegin(), kept.rend(), [bytes](const Block& b) { return b.bytes == bytes; });
        if (found == kept.rend()) {
            return nullptr;
        }
        void* const memory = found->memory;
        remove(static_cast<std::size_t>(kept.rend() - found) - 1);
        return memory;
    }

    /// Whether it was put on the shelf; the oldest make room.
    bool put(void* memory, std::size_t bytes) noexcept {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (!lock) {
            return false;
        }
        while (count_ > 0 && (count_ == blocks_.size() || bytes_ + bytes > kMost)) {
            free_oldest();
        }
        blocks_[count_++] = {memory, bytes};
        bytes_ += bytes;
        return true;
    }

    /// Gives all of it back, unless others keep it busy all the while (or, after a fork, for ever).
    void clear() noexcept {
        constexpr int kTries = 1000;
        std::unique_lock lock(mutex_, std::try_to_lock);
        for (int attempt = 1; attempt < kTries && !lock; ++attempt) {
            std::this_thread::yield();
            (void)lock.try_lock();
        }
        while (lock && count_ > 0) {
            free_oldest();
        }
    }

private:
    struct Block {
        void* memory;
        std::size_t bytes;
    };

    void free_oldest() noexcept {
        ::operator delete(blocks_[0].memory, alignment_of(blocks_[0].bytes));
        remove(0);
    }

    void remove(std::size_t at) noexcept {
        bytes_ -= blocks_[at].bytes;
        std::move(blocks_.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                  blocks_.begin() + static_cast<std::ptrdiff_t>(count_),
                  blocks_.begin() + static_cast<std::ptrdiff_t>(at));
        --count_;
    }

    std::mutex mutex_;
    std::array<Block, 512> blocks_{};
    std::size_t count_ = 0;
    std::size_t bytes_ = 0;
};

// AddressSanitizer is to see who uses freed memory. gcc tells of it by a macro, clang by a feature.
#if defined(__has_feature)
#define QKV_HAS_FEATURE(feature) __has_feature(feature)
#else
#define QKV_HAS_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || QKV_HAS_FEATURE(address_sanitizer)
constexpr bool kShelves = false;
#else
constexpr bool kShelves = true;
#endif

bool shelved(std::size_t bytes) { return kShelves && bytes >= Shelf::kLeast && bytes <= Shelf::kLargest; }

void* fresh(std::size_t bytes) {
    try {
        return ::operator new(bytes, alignment_of(bytes));
    } catch (const std::bad_alloc&) {  // what lies idle may be what is missing
        Shelf::instance().clear();
        return ::operator new(bytes, alignment_of(bytes));
    }
}

}  // namespace

void* allocate_elements(std::size_t bytes) {
    if (shelved(bytes)) {
        if (void* const memory = Shelf::instance().take(bytes)) {
            return memory;
        }
    }
    void* const memory = fresh(bytes);
    if (bytes >= kHugePage) {
        wish_for_huge_pages(memory, bytes);
    }
    return memory;
}

void free_elements(void* memory, std::size_t bytes) noexcept {
    if (!shelved(bytes) || !Shelf::instance().put(memory, bytes)) {
        ::operator delete(memory, alignment_of(bytes));
    }
}

}  // namespace qkv::detail

namespace qkv {

void release_idle_memory() noexcept { detail::Shelf::instance().clear(); }

}  // namespace qkv
