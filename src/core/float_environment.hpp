// The floating-point modes that arithmetic runs under, whatever the calling thread has set.
#pragma once

#include <cstdint>
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace qkv {

/// While it lives: round to nearest, subnormals kept, exceptions masked. A program that links anything built with
/// -ffast-math runs with subnormals flushed, on some of its threads; without this, bits would depend on which thread
/// took a task. The caller's modes come back at the end.
class FloatEnvironment {
public:
    FloatEnvironment() noexcept : saved_(read()) { write(kDefault); }
    ~FloatEnvironment() { write(saved_); }
    FloatEnvironment(const FloatEnvironment&) = delete;
    FloatEnvironment& operator=(const FloatEnvironment&) = delete;
    FloatEnvironment(FloatEnvironment&&) = delete;
    FloatEnvironment& operator=(FloatEnvironment&&) = delete;

private:
#if defined(__x86_64__) || defined(__i386__)
    using Word = unsigned;
    static constexpr Word kDefault = 0x1F80;  // MXCSR after reset: all exceptions masked, nothing else
    static Word read() noexcept { return _mm_getcsr(); }
    static void write(Word word) noexcept { _mm_setcsr(word); }
#elif defined(__aarch64__)
    using Word = std::uint64_t;
    static constexpr Word kDefault = 0;  // FPCR after reset
    static Word read() noexcept {
        Word word = 0;
        __asm__ volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void write(Word word) noexcept { __asm__ volatile("msr fpcr, %0" ::"r"(word)); }
#else
    using Word = unsigned;
    static constexpr Word kDefault = 0;
    static Word read() noexcept { return kDefault; }
    static void write(Word /*word*/) noexcept {}
#endif
    Word saved_;
};

}  // namespace qkv
