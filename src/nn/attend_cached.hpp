// Attention of a stage's new tokens over those that a cache keeps.
#pragma once

#include "nn/attend.hpp"
#include "qkv/kv_cache.hpp"

namespace qkv::nn {

/// Appends memory's projected keys and values to the sequences of `batch` and attends causally to all that these now
/// hold: fills memory's context. Pass's trace gets queries, keys and values of the new tokens, rotated_queries and
/// rotated_keys where a rope turns them, masked and weights over all positions.
///
/// Throws, before anything is appended: Error(out_of_range) where a sequence would outgrow `context_length`,
/// Error(shape_mismatch) where the cache holds other heads, and what KvCache::append throws.
template <class T>
void attend_cached(Remembered<T>& memory, AttendOptions options, std::int64_t context_length, KvCache& cache,
                   const CacheBatch& batch, const Pass<T>& pass);

}  // namespace qkv::nn
