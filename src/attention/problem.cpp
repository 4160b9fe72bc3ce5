#include "attention/problem.hpp"

#include "attention/kv_storage.hpp"

namespace qkv::detail {

namespace {

const CachedSequence& cached_sequence(const Problem& problem, std::size_t index) {
    return *problem.cache->find(problem.cache_sequences[index]);
}

}  // namespace

std::int64_t sequence_queries(const Problem& problem, std::int64_t index) {
    if (!problem.packed()) {
        return problem.queries;
    }
    const auto at = static_cast<std::size_t>(index);
    return (*problem.mask.packed_queries)[at + 1] - (*problem.mask.packed_queries)[at];
}

std::int64_t sequence_keys(const Problem& problem, std::int64_t index) {
    const auto at = static_cast<std::size_t>(index);
    if (problem.cache != nullptr) {
        return cached_sequence(problem, at).size;
    }
    if (!problem.packed()) {
        return problem.keys;
    }
    return (*problem.mask.packed_keys)[at + 1] - (*problem.mask.packed_keys)[at];
}

Sequence sequence_of(const Problem& problem, std::int64_t index) {
    const auto at = static_cast<std::size_t>(index);
    const Mask& mask = problem.mask;
    const Offsets& offsets = problem.offsets;

    Sequence sequence;
    sequence.index = index;
    sequence.queries = sequence_queries(problem, index);
    sequence.keys = sequence_keys(problem, index);
    sequence.query_offset = offsets.query;
    if (problem.packed()) {
        sequence.query_start = (*mask.packed_queries)[at];
    } else {
        sequence.batch = index;
    }
    if (problem.cache != nullptr) {
        sequence.blocks = cached_sequence(problem, at).blocks;
        sequence.query_offset = sequence.keys - sequence.queries;
    } else if (problem.packed()) {
        sequence.key_start = (*mask.packed_keys)[at];
    }

    const std::int64_t all_queries = offsets.queries != 0 ? offsets.queries : sequence.query_offset + sequence.queries;
    const std::int64_t all_keys = offsets.keys != 0 ? offsets.keys : offsets.key + sequence.keys;
    const std::int64_t key_begin = mask.key_begins ? (*mask.key_begins)[at] : 0;
    const std::int64_t key_end = mask.key_ends ? (*mask.key_ends)[at] : all_keys;
    sequence.first_key = std::clamp<std::int64_t>(key_begin - offsets.key, 0, sequence.keys);
    sequence.end_key = std::clamp<std::int64_t>(key_end - offsets.key, sequence.first_key, sequence.keys);

    // Global key − global query = (column − row) + (offsets.key − offsets.query). The bottom-right diagonal lies
    // `corner` keys to the right of the top-left one.
    const std::int64_t corner = key_end - all_queries;
    const std::int64_t to_local = sequence.query_offset - offsets.key;
    const std::int64_t farthest = Mask::unbounded;
    const auto bound = [farthest](std::int64_t limit, std::int64_t shift) {
        return limit == farthest || limit == -farthest ? limit : std::clamp(limit + shift, -farthest, farthest);
    };
    sequence.low = std::max(bound(mask.top_left.low, to_local), bound(mask.bottom_right.low, corner + to_local));
    sequence.high = std::min(bound(mask.top_left.high, to_local), bound(mask.bottom_right.high, corner + to_local));
    sequence.alibi_shift = to_local + (mask.alibi_align == Align::bottom_right ? corner : 0);
    return sequence;
}

}  // namespace qkv::detail
