// Tokens for caches, and what caches hold of them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "qkv/kv_cache.hpp"
#include "support/stored.hpp"

namespace support {

using qkv::DType;

inline constexpr std::int64_t kHeads = 2, kDim = 3, kValueDim = 5;
inline constexpr std::int64_t kRow = kHeads * (kDim + kValueDim);  // numbers per token: keys of all heads, then values

using Token = std::vector<double>;

[[nodiscard]] inline qkv::KvLayout layout_of(DType dtype) {
    return {.kv_heads = kHeads, .head_dim = kDim, .value_dim = kValueDim, .dtype = dtype};
}

/// Tokens as the tensors that append takes, in guarded memory of some layout.
struct Tokens {
    Stored k, v;

    Tokens(Random& random, std::int64_t rows, const std::vector<Token>& tokens, DType dtype) {
        const auto per_row = static_cast<std::int64_t>(tokens.size()) / std::max<std::int64_t>(1, rows);
        k = allocate({rows, kHeads, per_row, kDim}, dtype, pick_layout(random), pick_side(random));
        v = allocate({rows, kHeads, per_row, kValueDim}, dtype, pick_layout(random));
        for (std::size_t at = 0; at < tokens.size(); ++at) {
            const auto row = static_cast<std::int64_t>(at) / per_row;
            const auto token = static_cast<std::int64_t>(at) % per_row;
            std::size_t number = 0;
            for (std::int64_t h = 0; h < kHeads; ++h) {
                for (std::int64_t d = 0; d < kDim; ++d) {
                    write_one(k.view, row, h, token, d, tokens[at][number++]);
                }
            }
            for (std::int64_t h = 0; h < kHeads; ++h) {
                for (std::int64_t d = 0; d < kValueDim; ++d) {
                    write_one(v.view, row, h, token, d, tokens[at][number++]);
                }
            }
        }
    }
};

[[nodiscard]] inline std::vector<Token> random_tokens(Random& random, std::int64_t count, DType dtype) {
    std::vector<Token> tokens;
    tokens.reserve(static_cast<std::size_t>(count));
    for (std::int64_t t = 0; t < count; ++t) {
        tokens.push_back(normals(random, kRow, dtype));
    }
    return tokens;
}

/// Element (head, token, d) of a block's keys or values.
[[nodiscard]] inline double element(const void* data, DType dtype, std::int64_t block_tokens, std::int64_t width,
                                    std::int64_t head, std::int64_t token, std::int64_t d) {
    const auto* bytes = static_cast<const std::byte*>(data);
    const qkv::ConstTensorView one{bytes + ((head * block_tokens + token) * width + d) * qkv::size_of(dtype),
                                   dtype,
                                   {1, 1, 1, 1},
                                   {1, 1, 1, 1},
                                   qkv::Device::cpu};
    return read(one)[0];
}

/// The held tokens of a sequence, read through its blocks.
[[nodiscard]] inline std::vector<Token> held_tokens(const qkv::KvCache& cache, qkv::SequenceId sequence) {
    std::vector<Token> tokens;
    std::int64_t position = cache.first(sequence);
    const auto blocks = static_cast<std::int64_t>(cache.block_table(sequence).size());
    for (std::int64_t index = 0; index < blocks; ++index) {
        const qkv::KvBlock block = cache.block(sequence, index);
        EXPECT_EQ(block.first, position);
        EXPECT_EQ(block.dtype, cache.layout().dtype);
        position += block.tokens;
        for (std::int64_t t = 0; t < block.tokens; ++t) {
            Token token;
            for (std::int64_t h = 0; h < kHeads; ++h) {
                for (std::int64_t d = 0; d < kDim; ++d) {
                    token.push_back(element(block.keys, block.dtype, cache.block_tokens(), kDim, h, t, d));
                }
            }
            for (std::int64_t h = 0; h < kHeads; ++h) {
                for (std::int64_t d = 0; d < kValueDim; ++d) {
                    token.push_back(element(block.values, block.dtype, cache.block_tokens(), kValueDim, h, t, d));
                }
            }
            tokens.push_back(token);
        }
    }
    EXPECT_EQ(position, cache.size(sequence));
    return tokens;
}

}  // namespace support
