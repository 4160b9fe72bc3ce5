// The one gate: arguments in, a Problem or an Error out. Nothing is written before it has passed.
#pragma once

#include "attention/problem.hpp"
#include "qkv/kv_cache.hpp"

namespace qkv::detail {

/// The parts that forward and backward have in common.
[[nodiscard]] Problem validate_problem(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                                       const AttentionOptions& options);

/// The same over a cache. Refers to the batch's spans.
[[nodiscard]] Problem validate_cache_problem(const ConstTensorView& q, const KvStorage& cache, const CacheBatch& batch,
                                             const AttentionOptions& options);

/// What forward writes.
void validate_outputs(const Problem& problem, const TensorView& out, const AttentionExtras& extras);

/// What backward reads and writes.
void validate_gradients(const Problem& problem, const ConstTensorView& d_out, const AttentionSaved& saved,
                        const AttentionGradients& gradients);

}  // namespace qkv::detail
