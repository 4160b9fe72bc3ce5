#include "attention/kv_storage.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "attention/key_value.hpp"
#include "core/check.hpp"
#include "core/large_pages.hpp"

namespace qkv::detail {

namespace {

constexpr std::int64_t kAlignment = 64;

std::int64_t round_up(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

KeyValueBlocks block_layout(const KvLayout& layout, const KvPolicy& policy) {
    const char* what = "KvCache: bytes of a block";
    const std::int64_t rows = checked_multiply(layout.kv_heads, policy.block_tokens, what);
    const std::int64_t element = size_of(layout.dtype);
    // Both widths are at most 2^16, so that what is added and rounded up here stays far from 2^63.
    (void)checked_multiply(rows, std::int64_t{1} << 21, what);
    KeyValueBlocks blocks;
    blocks.dtype = layout.dtype;
    blocks.tokens = policy.block_tokens;
    blocks.values_at = round_up(rows * layout.head_dim * element);
    blocks.bytes = blocks.values_at + round_up(rows * *layout.value_dim * element);
    return blocks;
}

}  // namespace

BlockPool::BlockPool(std::int64_t blocks, std::int64_t block_bytes) {
    const std::int64_t bytes = checked_multiply(blocks, block_bytes, "KvCache: bytes of the pool");
    // Blocks that share a huge page are written one after another. Of larger ones, a contiguous cache's, each head
    // would begin pages of its own, and hold all of them from its first token on.
    const bool huge =
        static_cast<std::size_t>(block_bytes) <= kHugePage && static_cast<std::size_t>(bytes) >= 2 * kHugePage;
    const std::size_t alignment = huge ? kHugePage : static_cast<std::size_t>(kAlignment);
    try {
        holders_.resize(static_cast<std::size_t>(blocks));
        free_.resize(static_cast<std::size_t>(blocks));
        // calloc leaves untouched pages to the system: a pool costs what is written to it.
        memory_.reset(std::calloc(static_cast<std::size_t>(bytes) + alignment, 1));
    } catch (const std::exception&) {  // bad_alloc and length_error both mean: it does not fit
        memory_.reset();
    }
    if (!memory_) {
        fail(ErrorCode::out_of_memory, "KvCache: no memory for ", blocks, " blocks of ", block_bytes, " bytes");
    }
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    data_ = static_cast<std::byte*>(memory_.get()) + (alignment - address % alignment);
    if (huge) {
        wish_for_huge_pages(data_, static_cast<std::size_t>(bytes));
    }
    for (std::int64_t block = 0; block < blocks; ++block) {
        free_[static_cast<std::size_t>(block)] = blocks - 1 - block;
    }
}

std::int64_t BlockPool::take() noexcept {
    const std::int64_t block = free_.back();
    free_.pop_back();
    holders_[static_cast<std::size_t>(block)] = 1;
    return block;
}

void BlockPool::share(std::int64_t block) noexcept {
    if (++holders_[static_cast<std::size_t>(block)] == 2) {
        ++shared_;
    }
}

void BlockPool::release(std::int64_t block) noexcept {
    const std::int64_t left = --holders_[static_cast<std::size_t>(block)];
    if (left == 1) {
        --shared_;
    } else if (left == 0) {
        free_.push_back(block);  // has had room for all blocks since the beginning
    }
}

KvStorage::KvStorage(const KvLayout& layout, const KvPolicy& policy)
    : layout_(layout), policy_(policy), blocks_(block_layout(layout, policy)), pool_(policy.blocks, blocks_.bytes) {
    blocks_.data = pool_.data();
    // Caches are numbered, and their sequences' ids begin with the number, so that one's id is not taken for another's.
    static std::atomic<std::uint64_t> caches{0};
    const std::uint64_t number = caches.fetch_add(1, std::memory_order_relaxed) % 0x7FFFFFU + 1;
    next_id_ = static_cast<SequenceId>(number << 40U);
}

const CachedSequence* KvStorage::find(SequenceId id) const noexcept {
    const auto found = sequences_.find(id);
    return found == sequences_.end() ? nullptr : &found->second;
}

CachedSequence* KvStorage::find(SequenceId id) noexcept {
    const auto found = sequences_.find(id);
    return found == sequences_.end() ? nullptr : &found->second;
}

SequenceId KvStorage::add() {
    sequences_.emplace(next_id_, CachedSequence{});
    return next_id_++;
}

SequenceId KvStorage::fork(const CachedSequence& parent, std::int64_t tokens) {
    CachedSequence child = parent;
    child.blocks.reserve(parent.blocks.size());
    for (const std::int64_t block : child.blocks) {
        pool_.share(block);
    }
    truncate(child, tokens);
    try {
        sequences_.emplace(next_id_, child);
    } catch (...) {
        truncate(child, 0);
        throw;
    }
    return next_id_++;
}

void KvStorage::remove(SequenceId id) {
    const auto found = sequences_.find(id);
    truncate(found->second, 0);
    sequences_.erase(found);
}

void KvStorage::truncate(CachedSequence& sequence, std::int64_t tokens) noexcept {
    // A ring that has not wrapped has logical block i in slot i. One that has keeps all slots, and with them blocks of
    // tokens that are gone: the next append writes over them.
    const std::int64_t keep = std::min(blocks_of(tokens), policy_.slots);
    while (static_cast<std::int64_t>(sequence.blocks.size()) > keep) {
        pool_.release(sequence.blocks.back());
        sequence.blocks.pop_back();
    }
    sequence.size = tokens;
    sequence.first = tokens == 0 ? 0 : sequence.first;
}

bool KvStorage::holds_prefix(const CachedSequence& sequence, std::int64_t tokens) const noexcept {
    return tokens == 0 || sequence.first <= std::max<std::int64_t>(0, tokens - policy_.window.value_or(tokens));
}

std::int64_t KvStorage::blocks_of(std::int64_t tokens) const noexcept { return tiles_of(tokens, policy_.block_tokens); }

/// Calls visit(slot, tokens that the slot's block keeps) for each slot that the growth writes to. A ring that is
/// written more than once around is visited once around.
template <class Visit>
void KvStorage::for_each_written_slot(const Growth& growth, const Visit& visit) const {
    const std::int64_t size = growth.sequence->size;
    const std::int64_t begin = size / policy_.block_tokens;
    const std::int64_t end = growth.tokens == 0 ? begin : blocks_of(size + growth.tokens);
    for (std::int64_t block = begin; block < end && block - begin < policy_.slots; ++block) {
        visit(static_cast<std::size_t>(block % policy_.slots),
              std::max<std::int64_t>(0, size - block * policy_.block_tokens));
    }
}

std::int64_t KvStorage::blocks_needed(std::span<const Growth> growths) const {
    std::int64_t needed = 0;
    std::unordered_map<std::int64_t, std::int64_t> released;  // shared blocks that sequences before let go of
    for (const Growth& growth : growths) {
        for_each_written_slot(growth, [&](std::size_t slot, std::int64_t) {
            if (slot >= growth.sequence->blocks.size()) {
                ++needed;
            } else if (const std::int64_t block = growth.sequence->blocks[slot]; pool_.holders(block) > 1) {
                std::int64_t& gone = released[block];
                if (pool_.holders(block) - gone > 1) {
                    ++gone;
                    ++needed;
                }
            }
        });
    }
    return needed;
}

void KvStorage::grow(std::span<const Growth> growths) {
    const std::int64_t needed = blocks_needed(growths);
    if (needed > pool_.free_blocks()) {
        fail(ErrorCode::out_of_memory, "KvCache: append needs ", needed, " more blocks of ", policy_.block_tokens,
             " tokens; ", pool_.free_blocks(), " of ", pool_.blocks(), " are free");
    }
    for (const Growth& growth : growths) {
        const std::int64_t blocks = std::min(blocks_of(growth.sequence->size + growth.tokens), policy_.slots);
        std::vector<std::int64_t>& table = growth.sequence->blocks;
        if (blocks > static_cast<std::int64_t>(table.capacity())) {
            table.reserve(std::max(static_cast<std::size_t>(blocks), 2 * table.capacity()));
        }
    }
    for (const Growth& growth : growths) {
        grow_one(growth);
    }
}

void KvStorage::grow_one(const Growth& growth) noexcept {
    CachedSequence& sequence = *growth.sequence;
    for_each_written_slot(growth, [&](std::size_t slot, std::int64_t kept) {
        if (slot >= sequence.blocks.size()) {
            sequence.blocks.push_back(pool_.take());
            return;
        }
        std::int64_t& block = sequence.blocks[slot];
        if (pool_.holders(block) > 1) {
            const std::int64_t own = pool_.take();
            copy_tokens(block, own, kept);
            pool_.release(block);
            block = own;
        }
    });
    sequence.size += growth.tokens;
    const std::int64_t blocks = blocks_of(sequence.size);
    if (blocks > policy_.slots) {
        sequence.first = std::max(sequence.first, (blocks - policy_.slots) * policy_.block_tokens);
    }
}

void KvStorage::copy_tokens(std::int64_t from, std::int64_t to, std::int64_t tokens) noexcept {
    const auto copy = [&](std::int64_t offset, std::int64_t width) {
        const std::int64_t row_bytes = width * size_of(layout_.dtype);
        for (std::int64_t head = 0; head < layout_.kv_heads; ++head) {
            const std::int64_t at = offset + head * policy_.block_tokens * row_bytes;
            std::memcpy(pool_.data() + to * blocks_.bytes + at, pool_.data() + from * blocks_.bytes + at,
                        static_cast<std::size_t>(tokens * row_bytes));
        }
    };
    copy(0, layout_.head_dim);
    copy(blocks_.values_at, *layout_.value_dim);
}

std::byte* KvStorage::row(const CachedSequence& sequence, std::int64_t kv_head, std::int64_t token, std::int64_t offset,
                          std::int64_t width) const {
    Sequence place;
    place.blocks = sequence.blocks;
    const Rows found = block_rows(blocks_, place, kv_head, token, 1, offset, width);
    return pool_.data() + (found.data - blocks_.data);
}

std::byte* KvStorage::key(const CachedSequence& sequence, std::int64_t kv_head, std::int64_t token) const {
    return row(sequence, kv_head, token, 0, layout_.head_dim);
}

std::byte* KvStorage::value(const CachedSequence& sequence, std::int64_t kv_head, std::int64_t token) const {
    return row(sequence, kv_head, token, blocks_.values_at, *layout_.value_dim);
}

}  // namespace qkv::detail
