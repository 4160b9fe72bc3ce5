#include "qkv/instruction_set.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "core/check.hpp"
#include "core/instruction_set.hpp"
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qkv {

namespace {

constexpr std::array kNames{"scalar", "sse4", "avx2", "avx512", "amx", "neon", "avx512bf16"};

/// Whether the machine has a set; what it needs, or what is missing of it.
struct Finding {
    bool available;
    const char* reason;
};

#if defined(__x86_64__)
struct Cpuid {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    explicit Cpuid(unsigned leaf, unsigned subleaf = 0) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

constexpr bool has(unsigned word, std::initializer_list<unsigned> bits) {
    return std::ranges::all_of(bits, [word](unsigned bit) { return (word >> bit & 1U) != 0; });
}

/// XCR0: the register states that the operating system saves for every thread.
std::uint64_t saved_states() {
    if (!has(Cpuid(1).ecx, {27 /* OSXSAVE */})) {
        return 0;
    }
    unsigned low = 0;   // NOLINT(misc-const-correctness): the assembly writes it
    unsigned high = 0;  // NOLINT(misc-const-correctness)
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32U) | low;
}

/// Linux keeps tile registers from processes that have not asked (Documentation/arch/x86/xstate.rst).
bool tiles_allowed() {
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;
    return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Finding find(InstructionSet set) {
    constexpr std::uint64_t kAvxState = 0x6;
    constexpr std::uint64_t kAvx512State = 0xE6;
    constexpr std::uint64_t kTileState = 0x60000;
    const auto saves = [](std::uint64_t states) { return (saved_states() & states) == states; };
    switch (set) {
        case InstructionSet::scalar:
            return {true, "runs everywhere"};
        case InstructionSet::sse4:
            return {has(Cpuid(1).ecx, {0, 9, 19, 20}), "needs SSSE3, SSE4.1 and SSE4.2"};
        case InstructionSet::avx2:
            if (!has(Cpuid(1).ecx, {12 /* FMA */, 28 /* AVX */, 29 /* F16C */}) ||
                !has(Cpuid(7).ebx, {3 /* BMI1 */, 5 /* AVX2 */, 8 /* BMI2 */})) {
                return {false, "needs AVX2, FMA, F16C, BMI1 and BMI2"};
            }
            return {saves(kAvxState), "needs AVX2, FMA and F16C, and an operating system that saves YMM registers"};
        case InstructionSet::avx512:
            if (!find(InstructionSet::avx2).available || !has(Cpuid(7).ebx, {16, 17, 30, 31})) {
                return {false, "needs AVX2 and AVX-512 F, DQ, BW and VL"};
            }
            return {saves(kAvx512State),
                    "needs AVX-512 F, DQ, BW and VL, and an operating system that saves ZMM registers"};
        case InstructionSet::avx512bf16:
            return {find(InstructionSet::avx512).available && has(Cpuid(7, 1).eax, {5 /* AVX512-BF16 */}),
                    "needs all of avx512 and AVX512-BF16"};
        case InstructionSet::amx:
            if (!find(InstructionSet::avx512bf16).available ||
                !has(Cpuid(7).edx, {22 /* AMX-BF16 */, 24 /* AMX-TILE */})) {
                return {false, "needs AVX-512 with BF16, AMX-TILE and AMX-BF16"};
            }
            return {saves(kTileState) && tiles_allowed(),
                    "needs AVX-512 with BF16, AMX-TILE and AMX-BF16, and the operating system's leave to use tiles"};
        case InstructionSet::neon:
            break;
    }
    return {false, "is for AArch64"};
}
constexpr std::array kBestFirst{InstructionSet::amx,  InstructionSet::avx512bf16, InstructionSet::avx512,
                                InstructionSet::avx2, InstructionSet::sse4,       InstructionSet::scalar};
#elif defined(__aarch64__)
Finding find(InstructionSet set) {
    switch (set) {
        case InstructionSet::scalar:
            return {true, "runs everywhere"};
        case InstructionSet::neon:
            return {true, "part of every AArch64 machine"};
        default:
            return {false, "is for x86-64"};
    }
}
constexpr std::array kBestFirst{InstructionSet::neon, InstructionSet::scalar};
#else
Finding find(InstructionSet set) {
    return set == InstructionSet::scalar ? Finding{true, "runs everywhere"} : Finding{false, "is for other machines"};
}
constexpr std::array kBestFirst{InstructionSet::scalar};
#endif

/// Asked once: neither machine nor permission changes while a process runs.
const std::array<Finding, kNames.size()>& findings() {
    static const auto found = [] {
        std::array<Finding, kNames.size()> all{};
        for (std::size_t i = 0; i < all.size(); ++i) {
            all[i] = find(static_cast<InstructionSet>(i));
        }
        return all;
    }();
    return found;
}

InstructionSet chosen() {
    const char* wanted = std::getenv("QKV_ISA");
    if (wanted == nullptr || *wanted == '\0') {
        return *std::ranges::find_if(
            kBestFirst, [](InstructionSet set) { return findings()[static_cast<std::size_t>(set)].available; });
    }
    const auto* found =
        std::ranges::find_if(kNames, [wanted](const char* name) { return std::strcmp(name, wanted) == 0; });
    if (found == kNames.end()) {
        fail(ErrorCode::invalid_argument, "QKV_ISA is '", wanted,
             "'; expected scalar, sse4, avx2, avx512, avx512bf16, amx or neon");
    }
    const auto set = static_cast<InstructionSet>(found - kNames.begin());
    require_available(set, "QKV_ISA");
    return set;
}

}  // namespace

const char* name(InstructionSet set) noexcept {
    const auto at = static_cast<std::size_t>(set);
    return at < kNames.size() ? kNames[at] : "unknown";
}

std::vector<InstructionSetInfo> instruction_sets() {
    std::vector<InstructionSetInfo> all;
    for (const InstructionSet set : kBestFirst) {
        const Finding& finding = findings()[static_cast<std::size_t>(set)];
        all.push_back({set, finding.available, finding.reason});
    }
    return all;
}

InstructionSet default_instruction_set() {
    // A failure is not kept: every call that meets it throws.
    static const InstructionSet set = chosen();
    return set;
}

void require_available(InstructionSet set, const char* what) {
    const auto at = static_cast<std::size_t>(set);
    if (at >= kNames.size()) {
        fail(ErrorCode::invalid_argument, what, " is the unknown instruction set ", at);
    }
    if (!findings()[at].available) {
        fail(ErrorCode::unsupported, what, " is ", kNames[at], ", which this machine has not: it ",
             findings()[at].reason);
    }
}

}  // namespace qkv
