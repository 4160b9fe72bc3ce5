// PyTorch's CPU random numbers, bit for bit (torch 2.15, x86 builds with AVX2 or AVX-512).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "qkv/export.h"
#include "qkv/tensor.hpp"

namespace qkv QKV_EXPORT {

/// torch.Generator('cpu'): a Mersenne Twister (Matsumoto & Nishimura 1998) with PyTorch's ways of drawing from it.
/// Every draw advances the stream exactly as PyTorch's does, so a program that draws in the same order gets the same
/// numbers. Copying a Generator copies its place in the stream. T is float or double, of bernoulli_ also a byte.
///
/// Normals in double, and fewer than 16 normals in float, go through the C library's log, log1p, sin and cos, as
/// PyTorch's do: equal bits there need an equal C library.
class Generator {
public:
    /// As torch.manual_seed(seed): only the low 32 bits matter, and a cached normal is forgotten.
    explicit Generator(std::uint64_t seed = default_seed) { manual_seed(seed); }
    void manual_seed(std::uint64_t seed);
    /// All 64 bits of the last seed.
    [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }

    /// Raw draws: 32 bits, and 64 bits of which the first draw is the high word.
    [[nodiscard]] std::uint32_t random();
    [[nodiscard]] std::uint64_t random64();

    /// torch.rand(shape): uniform in [0, 1).
    template <class T = float>
    [[nodiscard]] BasicTensor<T> rand(Shape shape);
    /// torch.randn(shape): standard normal.
    template <class T = float>
    [[nodiscard]] BasicTensor<T> randn(Shape shape);

    /// tensor.uniform_(from, to) on a contiguous tensor: [from, to). Throws Error(invalid_argument), having drawn
    /// nothing, unless from <= to and from, to and to - from are finite in T.
    template <class T>
    void uniform_(std::span<T> values, double from, double to);
    /// tensor.normal_(mean, std) on a contiguous tensor; 16 or more values take PyTorch's vector path. Throws
    /// Error(invalid_argument), having drawn nothing, unless mean and std are finite in T and std >= 0.
    template <class T>
    void normal_(std::span<T> values, double mean, double std);
    /// tensor.bernoulli_(probability): 1 with that probability, else 0. Throws Error(invalid_argument), having drawn
    /// nothing, unless 0 <= probability <= 1.
    template <class T>
    void bernoulli_(std::span<T> values, double probability);

    /// The place in the stream as words of 32 bits, and back: both draw the same numbers from here on. set_state throws
    /// Error(invalid_argument), and then nothing has changed, for words that state() did not give.
    [[nodiscard]] std::vector<std::uint32_t> state() const;
    void set_state(std::span<const std::uint32_t> words);

    static constexpr std::uint64_t default_seed = 67280421310721ULL;  // torch's default_rng_seed_val

private:
    void refill();
    [[nodiscard]] double scalar_normal();

    std::array<std::uint32_t, 624> state_{};
    std::size_t next_ = 0;  // state_[next_] is drawn next
    std::uint64_t seed_ = 0;
    std::optional<double> cached_normal_;  // second half of the last scalar Box-Muller pair
};

}  // namespace qkv QKV_EXPORT
