// What the programs of docs/walk share: the built-in sentence, and a way to print a matrix.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>

#include "qkv/tensor.hpp"

/// "Your journey starts with one step", a vector of width 3 for each token: [6, 3].
inline qkv::Tensor journey() {
    return qkv::Tensor({6, 3}, {.43F, .15F, .89F,    // Your
                                .55F, .87F, .66F,    // journey
                                .57F, .85F, .64F,    // starts
                                .22F, .58F, .33F,    // with
                                .77F, .25F, .10F,    // one
                                .05F, .80F, .55F});  // step
}

/// A name, a shape, and under them the rows with four digits.
inline void print(const char* name, const qkv::Tensor& x) {
    std::printf("%s %s\n", name, qkv::to_string(x.shape()).c_str());
    for (std::int64_t row = 0; row < x.numel() / x.size(-1); ++row) {
        for (const float value : x.row(row)) {
            if (std::isnan(value)) {
                std::printf("     nan");  // printf may add a sign
            } else {
                std::printf("%8.4f", static_cast<double>(value));
            }
        }
        std::printf("\n");
    }
}

/// Row number `row` of a matrix as a matrix of one row.
inline qkv::Tensor row_of(const qkv::Tensor& x, std::int64_t row) {
    const auto values = x.row(row);
    return qkv::Tensor({1, x.size(-1)}, {values.begin(), values.end()});
}
