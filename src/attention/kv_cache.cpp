// The public face of caches: arguments are checked here, and appended tokens converted.
#include "qkv/kv_cache.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "attention/cache_batch.hpp"
#include "attention/rope_rows.hpp"
#include "attention/validate_views.hpp"
#include "core/convert.hpp"
#include "core/float_environment.hpp"

namespace qkv {

using detail::CachedSequence;
using detail::KvPolicy;
using detail::KvStorage;
using detail::sequence_at;

namespace {

constexpr std::int64_t kWidest = 1 << 16;
constexpr std::int64_t kMostTokens = Mask::unbounded / 4;  // positions stay far from overflow, as Offsets do

void check_count(std::int64_t count, const char* name, std::int64_t least = 1) {
    if (count < least || count > kMostTokens) {
        fail(ErrorCode::invalid_argument, "KvCache: ", name, " is ", count, "; expected ", least, " to ", kMostTokens);
    }
}

void check_block_tokens(std::int64_t tokens) {
    if (tokens < 16 || tokens > (1 << 20) || !std::has_single_bit(static_cast<std::uint64_t>(tokens))) {
        fail(ErrorCode::invalid_argument, "KvCache: block_tokens is ", tokens,
             "; expected a power of two from 16 to 2^20");
    }
}

KvLayout checked(const KvLayout& layout) {
    KvLayout full = layout;
    full.value_dim = layout.value_dim.value_or(layout.head_dim);
    const auto check = [](std::int64_t size, const char* name) {
        if (size < 1 || size > kWidest) {
            fail(ErrorCode::invalid_argument, "KvCache: ", name, " is ", size, "; expected 1 to ", kWidest);
        }
    };
    check(full.kv_heads, "kv_heads");
    check(full.head_dim, "head_dim");
    check(*full.value_dim, "value_dim");
    switch (full.dtype) {
        case DType::f32:
        case DType::bf16:
        case DType::f16:
        case DType::f64:
            return full;
        case DType::boolean:
            break;
    }
    fail(ErrorCode::unsupported, "KvCache: dtype is ", name(full.dtype), "; expected f32, bf16, f16 or f64");
}

/// k or v of an append: [B, Hkv, T, width] of a float type.
void check_tokens(const ConstTensorView& view, const char* name, const char* letters, const Shape4& expected) {
    detail::check_view(view, name);
    detail::check_dtype(view, name, {DType::f32, DType::bf16, DType::f16, DType::f64});
    detail::check_shape(view, name, letters, expected);
    detail::check_unit_stride(view, name);
}

/// Keys of a sequence that grows to `size` tokens can be turned, each once and for all.
void check_rope(const Rope& rope, SequenceId id, std::int64_t size) {
    if (size > rope.positions()) {
        fail(ErrorCode::out_of_range, "rope: sequence ", id, " would grow to ", size, " tokens; expected at most ",
             rope.positions(), ", the positions that the rope has");
    }
    if (!rope.steady_up_to(size)) {
        fail(
            ErrorCode::unsupported, "rope: sequence ", id, " would grow to ", size,
            " tokens, past the original_context of a dynamic NTK scaling, whose frequencies change from there on; keys "
            "in a cache keep the angles that they were turned by");
    }
}

/// One token of one head, on its way from the caller's type to the cache's. A is the wider of computation's types, so
/// that nothing is rounded twice but f64 on its way to 16 bits.
template <class A>
void append_row(std::byte* to, DType dtype, const ConstTensorView& view, std::int64_t batch, std::int64_t head,
                std::int64_t token, std::vector<A>& row, const detail::RopeRows<A>* rope = nullptr) {
    detail::load(row.data(), view.at(batch, head, token, 0), view.dtype, 1, view.size(3));
    if (rope != nullptr) {
        rope->turn(row.data());
    }
    detail::store(to, dtype, 1, row.data(), view.size(3));
}

template <class A>
void append_rows(KvStorage& storage, std::span<const KvStorage::Growth> growths, const CacheBatch& batch,
                 const ConstTensorView& k, const ConstTensorView& v, const Rope* rope) {
    const KvLayout& layout = storage.layout();
    std::optional<detail::RopeRows<A>> turns;
    std::vector<double> frequencies;
    if (rope != nullptr) {
        turns.emplace(*rope);
        frequencies = rope->frequencies();
    }
    std::vector<A> row(static_cast<std::size_t>(std::max(layout.head_dim, *layout.value_dim)));
    storage.grow(growths);  // the last that can throw
    const FloatEnvironment modes;
    for (std::size_t index = 0; index < batch.sequences.size(); ++index) {
        const CachedSequence& sequence = *growths[index].sequence;
        const detail::BatchTokens tokens = detail::batch_tokens(batch, k, index);
        const std::int64_t begin = sequence.size - tokens.count;
        // A ring does not hold the beginning of an append that is longer than itself.
        for (std::int64_t token = std::max(begin, sequence.first); token < sequence.size; ++token) {
            const std::int64_t source = tokens.start + (token - begin);
            if (turns) {
                turns->move_to(token, frequencies);
            }
            for (std::int64_t head = 0; head < layout.kv_heads; ++head) {
                append_row(storage.key(sequence, head, token), layout.dtype, k, tokens.row, head, source, row,
                           turns ? &*turns : nullptr);
                append_row(storage.value(sequence, head, token), layout.dtype, v, tokens.row, head, source, row);
            }
        }
    }
}

}  // namespace

KvCache::KvCache(std::unique_ptr<KvStorage> storage) : storage_(std::move(storage)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

KvCache KvCache::contiguous(const KvLayout& layout, const ContiguousOptions& options) {
    check_count(options.capacity, "capacity");
    check_count(options.sequences, "sequences");
    const KvPolicy policy{.blocks = options.sequences,
                          .block_tokens = options.capacity,
                          .slots = 1,
                          .window = {},
                          .capacity = options.capacity};
    return KvCache(std::make_unique<KvStorage>(checked(layout), policy));
}

KvCache KvCache::windowed(const KvLayout& layout, const WindowedOptions& options) {
    check_count(options.window, "window");
    check_count(options.max_append, "max_append");
    check_count(options.sequences, "sequences");
    check_block_tokens(options.block_tokens);
    // The newest block may hold a single token, and the others must hold the rest.
    const std::int64_t slots = detail::tiles_of(options.window + options.max_append - 1, options.block_tokens) + 1;
    const KvPolicy policy{.blocks = checked_multiply(options.sequences, slots, "KvCache: blocks of the pool"),
                          .block_tokens = options.block_tokens,
                          .slots = slots,
                          .window = options.window,
                          .capacity = {}};
    return KvCache(std::make_unique<KvStorage>(checked(layout), policy));
}

KvCache KvCache::paged(const KvLayout& layout, const PagedOptions& options) {
    check_count(options.blocks, "blocks");
    check_block_tokens(options.block_tokens);
    const KvPolicy policy{.blocks = options.blocks,
                          .block_tokens = options.block_tokens,
                          .slots = std::numeric_limits<std::int64_t>::max(),
                          .window = {},
                          .capacity = {}};
    return KvCache(std::make_unique<KvStorage>(checked(layout), policy));
}

SequenceId KvCache::add() { return storage_->add(); }

SequenceId KvCache::fork(SequenceId sequence, std::optional<std::int64_t> tokens) {
    const CachedSequence& parent = sequence_at(*storage_, sequence, "sequence");
    const std::int64_t prefix = tokens.value_or(parent.size);
    check_prefix(sequence, prefix);
    return storage_->fork(parent, prefix);
}

void KvCache::remove(SequenceId sequence) {
    (void)sequence_at(*storage_, sequence, "sequence");
    storage_->remove(sequence);
}

void KvCache::append(const CacheBatch& batch, ConstTensorView k, ConstTensorView v) {
    append_turned(batch, k, v, nullptr);
}

void KvCache::append(const CacheBatch& batch, ConstTensorView k, ConstTensorView v, const Rope& rope) {
    if (rope.head_dim() != layout().head_dim) {
        fail(ErrorCode::shape_mismatch, "rope has head_dim ", rope.head_dim(), "; expected ", layout().head_dim,
             ", the cache's");
    }
    append_turned(batch, k, v, &rope);
}

void KvCache::append_turned(const CacheBatch& batch, const ConstTensorView& k, const ConstTensorView& v,
                            const Rope* rope) {
    const KvLayout& layout = storage_->layout();
    check_tokens(k, "k", "[B, Hkv, T, D]", {k.size(0), layout.kv_heads, k.size(2), layout.head_dim});
    check_tokens(v, "v", "[B, Hkv, T, Dv]", {k.size(0), layout.kv_heads, k.size(2), *layout.value_dim});
    detail::check_dtype(v, "v", {k.dtype});
    detail::check_batch(*storage_, batch, k, "k");
    std::vector<SequenceId> sorted(batch.sequences.begin(), batch.sequences.end());
    std::ranges::sort(sorted);
    if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end()) {
        fail(ErrorCode::invalid_argument, "sequences: ", *twice, " is there twice; append takes each once");
    }
    std::vector<KvStorage::Growth> growths;
    growths.reserve(batch.sequences.size());
    for (std::size_t index = 0; index < batch.sequences.size(); ++index) {
        CachedSequence& sequence = *storage_->find(batch.sequences[index]);
        const std::int64_t tokens = detail::batch_tokens(batch, k, index).count;
        if (tokens > storage_->policy().capacity.value_or(kMostTokens) - sequence.size) {
            fail(ErrorCode::out_of_range, "k: sequence ", batch.sequences[index], " has ", sequence.size,
                 " tokens, and ", tokens, " more would pass its capacity of ",
                 storage_->policy().capacity.value_or(kMostTokens));
        }
        if (rope != nullptr) {
            check_rope(*rope, batch.sequences[index], sequence.size + tokens);
        }
        growths.push_back({&sequence, tokens});
    }
    layout.dtype == DType::f64 ? append_rows<double>(*storage_, growths, batch, k, v, rope)
                               : append_rows<float>(*storage_, growths, batch, k, v, rope);
}

std::vector<std::int64_t> KvCache::next_positions(const CacheBatch& batch, const ConstTensorView& tokens) const {
    detail::check_batch(*storage_, batch, tokens, "tokens");
    std::vector<std::int64_t> positions;
    for (std::size_t index = 0; index < batch.sequences.size(); ++index) {
        const std::int64_t size = storage_->find(batch.sequences[index])->size;
        for (std::int64_t token = 0; token < detail::batch_tokens(batch, tokens, index).count; ++token) {
            positions.push_back(size + token);
        }
    }
    return positions;
}

void KvCache::check_prefix(SequenceId id, std::int64_t tokens) const {
    const CachedSequence& sequence = sequence_at(*storage_, id, "sequence");
    if (tokens < 0 || tokens > sequence.size) {
        fail(ErrorCode::out_of_range, "tokens is ", tokens, "; expected 0 to ", sequence.size,
             ", the size of the sequence");
    }
    if (!storage_->holds_prefix(sequence, tokens)) {
        fail(ErrorCode::out_of_range, "tokens is ", tokens, "; the ring holds positions from ", sequence.first,
             " on, and a window of ", *storage_->policy().window, " before ", tokens, " expects older ones");
    }
}

void KvCache::truncate(SequenceId sequence, std::int64_t tokens) {
    check_prefix(sequence, tokens);
    storage_->truncate(*storage_->find(sequence), tokens);
}

void KvCache::reset(SequenceId sequence) { truncate(sequence, 0); }

std::int64_t KvCache::size(SequenceId sequence) const { return sequence_at(*storage_, sequence, "sequence").size; }
std::int64_t KvCache::first(SequenceId sequence) const { return sequence_at(*storage_, sequence, "sequence").first; }

const KvLayout& KvCache::layout() const noexcept { return storage_->layout(); }
std::optional<std::int64_t> KvCache::window() const noexcept { return storage_->policy().window; }
std::optional<std::int64_t> KvCache::capacity() const noexcept { return storage_->policy().capacity; }
std::int64_t KvCache::block_tokens() const noexcept { return storage_->policy().block_tokens; }
std::int64_t KvCache::sequences() const noexcept { return static_cast<std::int64_t>(storage_->sequences()); }
std::int64_t KvCache::blocks() const noexcept { return storage_->pool().blocks(); }
std::int64_t KvCache::free_blocks() const noexcept { return storage_->pool().free_blocks(); }
std::int64_t KvCache::shared_blocks() const noexcept { return storage_->pool().shared_blocks(); }
std::size_t KvCache::bytes() const noexcept { return static_cast<std::size_t>(blocks() * storage_->blocks().bytes); }

std::vector<std::int64_t> KvCache::block_table(SequenceId sequence) const {
    const CachedSequence& held = sequence_at(*storage_, sequence, "sequence");
    std::vector<std::int64_t> table;
    for (std::int64_t token = held.first; token < held.size; token += block_tokens()) {
        table.push_back(held.blocks[static_cast<std::size_t>(token / block_tokens()) % held.blocks.size()]);
    }
    return table;
}

KvBlock KvCache::block(SequenceId sequence, std::int64_t index) const {
    const CachedSequence& held = sequence_at(*storage_, sequence, "sequence");
    const std::int64_t blocks = detail::tiles_of(held.size - held.first, block_tokens());
    if (index < 0 || index >= blocks) {
        fail(ErrorCode::out_of_range, "index is ", index, "; expected 0 to ", blocks - 1, " (the sequence has ", blocks,
             " blocks)");
    }
    const std::int64_t first = held.first + index * block_tokens();
    return {storage_->layout().dtype, storage_->key(held, 0, first), storage_->value(held, 0, first), first,
            std::min(block_tokens(), held.size - first)};
}

}  // namespace qkv
