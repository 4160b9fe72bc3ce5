// The sentences that the teaching texts use.
#pragma once

#include "qkv/tensor.hpp"

namespace qkv::test {

/// Your journey starts with one step.
inline Tensor journey() {
    return Tensor({6, 3}, {.43F, .15F, .89F, .55F, .87F, .66F, .57F, .85F, .64F, .22F, .58F, .33F, .77F, .25F, .10F,
                           .05F, .80F, .55F});
}

/// Hello shiny sun.
inline Tensor sun() { return Tensor({3, 3}, {.34F, .22F, .54F, .53F, .34F, .98F, .29F, .54F, .93F}); }

/// `x` twice, as a batch of two equal sequences.
inline Tensor batch_of_two(const Tensor& x) {
    std::vector<float> values(x.values().begin(), x.values().end());
    values.insert(values.end(), x.values().begin(), x.values().end());
    return Tensor({2, x.size(0), x.size(1)}, std::move(values));
}

}  // namespace qkv::test
