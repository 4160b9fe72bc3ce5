// Random numbers in runs: what the generator wants of the kernels, which are above it. They are integers, so every
// instruction set draws the same.
#pragma once

#include <cstdint>

#include "qkv/instruction_set.hpp"

namespace qkv {

struct Draws {
    /// Steps each of the Mersenne Twister's kTwisterWords words once.
    void (*refill)(std::uint32_t* state);
    /// kept[i] ← 1 where the low 53 bits of words 2i, tempered, the high half, and 2i + 1 are below `limit`, else 0.
    /// At most kTwisterWords / 2 of them.
    void (*keep)(std::uint8_t* kept, const std::uint32_t* words, std::int64_t count, std::uint64_t limit);
};

/// Defined among the kernels.
[[nodiscard]] const Draws& draws(InstructionSet set) noexcept;

}  // namespace qkv
