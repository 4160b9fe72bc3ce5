// The part of validation that looks at masks.
#pragma once

#include "attention/problem.hpp"

namespace qkv::detail {

/// Checks `mask` against the sizes already in `problem`, stores it there with its views broadcast, and sets sequences.
void take_mask(Problem& problem, const Mask& mask);

/// dbias and dalibi: asked for only with a bias and slopes, and of shapes that broadcast as those do.
void check_mask_gradients(const Problem& problem, const AttentionGradients& gradients);

}  // namespace qkv::detail
