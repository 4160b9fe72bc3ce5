// FNV-1a over the bits of tensors, as the golden files hold it (golden/README.md).
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "qkv/tensor.hpp"

namespace qkv::test {

inline std::string fnv1a(const std::vector<const Tensor*>& tensors) {
    std::uint64_t digest = 0xCBF29CE484222325U;
    for (const Tensor* tensor : tensors) {
        for (const float value : tensor->values()) {
            const auto bits = std::bit_cast<std::uint32_t>(value);
            for (unsigned shift = 0; shift < 32; shift += 8) {
                digest = (digest ^ ((bits >> shift) & 0xFFU)) * 0x100000001B3U;
            }
        }
    }
    std::string hex(16, '0');
    for (std::size_t digit = 16; digit-- > 0; digest >>= 4U) {
        hex[digit] = "0123456789abcdef"[digest & 0xFU];
    }
    return hex;
}

}  // namespace qkv::test
