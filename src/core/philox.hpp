// Philox4x32-10: random numbers from a counter (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). No state: the same counter and key give the same four words anywhere, in any order.
#pragma once

#include <array>
#include <cstdint>

namespace qkv {

using PhiloxWords = std::array<std::uint32_t, 4>;

[[nodiscard]] inline PhiloxWords philox4x32_10(PhiloxWords counter, std::uint64_t key) noexcept {
    auto key0 = static_cast<std::uint32_t>(key);
    auto key1 = static_cast<std::uint32_t>(key >> 32U);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter[2];
        counter = {
            static_cast<std::uint32_t>(product1 >> 32U) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
            static_cast<std::uint32_t>(product0 >> 32U) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
        key0 += 0x9E3779B9U;  // golden ratio
        key1 += 0xBB67AE85U;  // √3 − 1
    }
    return counter;
}

}  // namespace qkv
