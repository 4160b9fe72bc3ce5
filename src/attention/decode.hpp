// Decode: a few queries of each sequence over the many keys of a cache. The rows of all queries and heads that share a
// key/value head are worked on together, so that keys and values are read once; keys are cut at multiples of
// kSplitKeys, each span is summed by itself, and the spans are merged in order. Who works on which span never shows.
#pragma once

#include "attention/forward.hpp"

namespace qkv::detail {

inline constexpr std::int64_t kSplitKeys = 512;

struct DecodePlan {
    Plan plan;
    /// An item is one span of a tile of rows, its result kept until all are merged; else an item is a tile of rows.
    bool spread = false;
    std::int64_t tiles = 0;  // of rows, in all sequences
    std::int64_t items = 0;
    std::int64_t rows = 0;  // of the largest tile
};

[[nodiscard]] DecodePlan plan_decode(const ForwardCall& call, const Runtime& runtime);
void run_decode(const ForwardCall& call, const DecodePlan& plan, const Runtime& runtime);

}  // namespace qkv::detail
