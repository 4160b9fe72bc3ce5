// The mechanism of caches: sequences as tables of blocks out of one pool.
//
//     table of a      [4] [0] [7]          paged: block 7 is half full
//     table of b      [4] [0] [2]          a fork: blocks 4 and 0 are shared, 2 was copied from 7 by b's append
//
//     a ring of 3     [5] [1] [3]          logical block i lies in slot i mod 3: after 4 blocks,
//                      3   1   2           slot 0 holds tokens of logical block 3, and block 0 is gone
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "attention/problem.hpp"
#include "qkv/kv_cache.hpp"

namespace qkv::detail {

/// Blocks of equal size in one allocation, each with the number of sequences that hold it.
class BlockPool {
public:
    /// Memory is zero: what nobody has written is no NaN either.
    BlockPool(std::int64_t blocks, std::int64_t block_bytes);

    [[nodiscard]] std::byte* data() const noexcept { return data_; }
    [[nodiscard]] std::int64_t blocks() const noexcept { return static_cast<std::int64_t>(holders_.size()); }
    [[nodiscard]] std::int64_t free_blocks() const noexcept { return static_cast<std::int64_t>(free_.size()); }
    [[nodiscard]] std::int64_t shared_blocks() const noexcept { return shared_; }
    [[nodiscard]] std::int64_t holders(std::int64_t block) const noexcept {
        return holders_[static_cast<std::size_t>(block)];
    }

    /// A free block, from now on held once. There must be one.
    [[nodiscard]] std::int64_t take() noexcept;
    void share(std::int64_t block) noexcept;
    void release(std::int64_t block) noexcept;

private:
    struct Free {
        void operator()(void* memory) const noexcept { std::free(memory); }
    };
    std::unique_ptr<void, Free> memory_;
    std::byte* data_ = nullptr;
    std::vector<std::int64_t> holders_;
    std::vector<std::int64_t> free_;  // the last is taken first
    std::int64_t shared_ = 0;
};

struct CachedSequence {
    std::int64_t size = 0;   // tokens appended
    std::int64_t first = 0;  // the oldest token held, a multiple of block_tokens
    std::vector<std::int64_t> blocks;
};

/// What makes the three kinds of cache.
struct KvPolicy {
    std::int64_t blocks = 0;
    std::int64_t block_tokens = 0;
    std::int64_t slots = 0;  // most blocks of a table; then it is a ring
    std::optional<std::int64_t> window = {};
    std::optional<std::int64_t> capacity = {};
};

class KvStorage {
public:
    KvStorage(const KvLayout& layout, const KvPolicy& policy);

    [[nodiscard]] const KvLayout& layout() const noexcept { return layout_; }
    [[nodiscard]] const KvPolicy& policy() const noexcept { return policy_; }
    [[nodiscard]] const BlockPool& pool() const noexcept { return pool_; }
    [[nodiscard]] const KeyValueBlocks& blocks() const noexcept { return blocks_; }
    [[nodiscard]] std::size_t sequences() const noexcept { return sequences_.size(); }

    /// nullptr: no sequence of this cache.
    [[nodiscard]] const CachedSequence* find(SequenceId id) const noexcept;
    [[nodiscard]] CachedSequence* find(SequenceId id) noexcept;

    [[nodiscard]] SequenceId add();
    [[nodiscard]] SequenceId fork(const CachedSequence& parent, std::int64_t tokens);
    void remove(SequenceId id);
    void truncate(CachedSequence& sequence, std::int64_t tokens) noexcept;
    /// Whether the sequence still holds all that the token after its first `tokens` tokens would see.
    [[nodiscard]] bool holds_prefix(const CachedSequence& sequence, std::int64_t tokens) const noexcept;

    struct Growth {
        CachedSequence* sequence = nullptr;
        std::int64_t tokens = 0;
    };
    /// Makes room at the end of different sequences: new blocks, and copies of shared ones. Throws before any change.
    void grow(std::span<const Growth> growths);

    /// Where a held token's key and value of one head are written.
    [[nodiscard]] std::byte* key(const CachedSequence& sequence, std::int64_t kv_head, std::int64_t token) const;
    [[nodiscard]] std::byte* value(const CachedSequence& sequence, std::int64_t kv_head, std::int64_t token) const;

private:
    [[nodiscard]] std::int64_t blocks_of(std::int64_t tokens) const noexcept;
    template <class Visit>
    void for_each_written_slot(const Growth& growth, const Visit& visit) const;
    [[nodiscard]] std::int64_t blocks_needed(std::span<const Growth> growths) const;
    void grow_one(const Growth& growth) noexcept;
    void copy_tokens(std::int64_t from, std::int64_t to, std::int64_t tokens) noexcept;
    [[nodiscard]] std::byte* row(const CachedSequence& sequence, std::int64_t kv_head, std::int64_t token,
                                 std::int64_t offset, std::int64_t width) const;

    KvLayout layout_;
    KvPolicy policy_;
    KeyValueBlocks blocks_;
    BlockPool pool_;
    std::unordered_map<SequenceId, CachedSequence> sequences_;
    SequenceId next_id_ = 0;
};

}  // namespace qkv::detail
