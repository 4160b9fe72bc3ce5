// From RopeOptions to radians a token.
#pragma once

#include <cstdint>
#include <vector>

#include "qkv/rope.hpp"

namespace qkv::detail {

/// Throws Error(invalid_argument) naming the option that is out of its range.
void check_rope_options(const RopeOptions& options, std::int64_t rotary_dim);

/// One per pair, of a sequence of `length` tokens.
[[nodiscard]] std::vector<double> rope_frequencies(const RopeOptions& options, std::int64_t rotary_dim,
                                                   std::int64_t length);

/// What cosines and sines are multiplied by.
[[nodiscard]] double rope_attention_factor(const RopeScaling& scaling);

}  // namespace qkv::detail
