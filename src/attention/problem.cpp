#include "attention/problem.hpp"

namespace qkv::detail {

Sequence sequence_of(const Problem& problem, std::int64_t index) {
    const auto at = static_cast<std::size_t>(index);
    const Mask& mask = problem.mask;
    const Offsets& offsets = problem.offsets;

    Sequence sequence;
    sequence.index = index;
    if (problem.packed()) {
        sequence.query_start = (*mask.packed_queries)[at];
        sequence.key_start = (*mask.packed_keys)[at];
        sequence.queries = (*mask.packed_queries)[at + 1] - sequence.query_start;
        sequence.keys = (*mask.packed_keys)[at + 1] - sequence.key_start;
    } else {
        sequence.batch = index;
        sequence.queries = problem.queries;
        sequence.keys = problem.keys;
    }

    const std::int64_t all_queries = offsets.queries != 0 ? offsets.queries : offsets.query + sequence.queries;
    const std::int64_t all_keys = offsets.keys != 0 ? offsets.keys : offsets.key + sequence.keys;
    const std::int64_t key_begin = mask.key_begins ? (*mask.key_begins)[at] : 0;
    const std::int64_t key_end = mask.key_ends ? (*mask.key_ends)[at] : all_keys;
    sequence.first_key = std::clamp<std::int64_t>(key_begin - offsets.key, 0, sequence.keys);
    sequence.end_key = std::clamp<std::int64_t>(key_end - offsets.key, sequence.first_key, sequence.keys);

    // Global key − global query = (column − row) + (offsets.key − offsets.query). The bottom-right diagonal lies
    // `corner` keys to the right of the top-left one.
    const std::int64_t corner = key_end - all_queries;
    const std::int64_t to_local = offsets.query - offsets.key;
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
