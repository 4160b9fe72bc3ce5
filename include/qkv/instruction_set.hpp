// The instruction sets that the library has kernels for, and which of them this machine runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qkv/export.h"

namespace qkv QKV_EXPORT {

/// A value names the kernels written for it. Which one is used changes the last bits of results, never their meaning.
enum class InstructionSet : std::uint8_t {
    scalar,      ///< one number at a time, any machine
    sse4,        ///< x86: 128-bit vectors
    avx2,        ///< x86: 256-bit vectors, fused multiply-add
    avx512,      ///< x86: 512-bit vectors (F, VL, DQ, BW)
    amx,         ///< x86: AVX-512 and bf16 tiles; bf16 inputs use the tiles
    neon,        ///< AArch64: 128-bit vectors, fused multiply-add
    avx512bf16,  ///< x86: AVX-512 and products of bf16 pairs; bf16 inputs use these
};

/// "scalar", "sse4", "avx2", "avx512", "avx512bf16", "amx" or "neon": what QKV_ISA takes.
[[nodiscard]] const char* name(InstructionSet set) noexcept;

struct InstructionSetInfo {
    InstructionSet set = InstructionSet::scalar;
    bool available = false;
    std::string reason;  ///< what it needs, or what this machine lacks of it
};

/// All that this build knows, best first. Asking for amx's availability asks the operating system to allow tiles.
[[nodiscard]] std::vector<InstructionSetInfo> instruction_sets();

/// What a Runtime uses that is not told otherwise: the one that the environment variable QKV_ISA names, else the first
/// available of instruction_sets(). Throws Error(invalid_argument) when QKV_ISA names none, Error(unsupported) when it
/// names one that this machine or build has not.
[[nodiscard]] InstructionSet default_instruction_set();

}  // namespace qkv QKV_EXPORT
