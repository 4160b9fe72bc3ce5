// Rotary position embedding: queries and keys are turned by an angle that grows with their position, so that their
// product depends on how far apart they stand (Su et al. 2021, "RoFormer", section 3.2.2; docs/rope.md).
//
// Letters: B batch, H heads, T tokens, D head_dim, R rotary_dim: how many columns of a head are turned.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "qkv/export.h"
#include "qkv/runtime.hpp"
#include "qkv/view.hpp"

namespace qkv QKV_EXPORT {

namespace detail {
template <class T>
class RopeRows;
}

/// Which two columns are turned together, pair i of R/2.
enum class RopePairing : std::uint8_t {
    half_split,   ///< i and i + R/2: GPT-NeoX, Llama as Hugging Face stores it
    interleaved,  ///< 2i and 2i + 1: the paper, GPT-J, Llama as Meta stores it
};

/// Position interpolation (Chen et al. 2023): every frequency divided by `factor`.
struct RopeLinear {
    double factor = 1.0;  ///< ≥ 1
};

/// NTK-aware scaling (bloc97 2023): base ← base · factor^(R/(R−2)), so that the slowest pair is slowed down by `factor`
/// and the fastest keeps its frequency.
struct RopeNtk {
    double factor = 1.0;  ///< ≥ 1
};

/// Dynamic NTK scaling (emozilla 2023): as RopeNtk, by a factor that grows with the sequence's length L:
/// factor · L / original_context − (factor − 1), and 1 while L ≤ original_context. Keys that were turned for a shorter
/// sequence do not fit queries of a longer one.
struct RopeDynamicNtk {
    double factor = 1.0;                ///< ≥ 1
    std::int64_t original_context = 0;  ///< tokens that the model was trained on, ≥ 1
};

/// YaRN (Peng et al. 2023, sections 3.2 to 3.4). Pairs that turn more than beta_fast times over the original context
/// keep their frequency, those that turn less than beta_slow times are divided by `factor`, a linear ramp over the
/// pairs between. Both cosine and sine are multiplied by an attention factor.
struct RopeYarn {
    double factor = 1.0;                ///< ≥ 1
    std::int64_t original_context = 0;  ///< tokens that the model was trained on, ≥ 1
    double beta_fast = 32.0;
    double beta_slow = 1.0;  ///< 0 < beta_slow < beta_fast
    bool truncate = true;    ///< the ramp's ends are whole pairs: rounded down and up
    /// Default: 0.1 · ln(factor) + 1, or with mscale and mscale_all_dim both other than 0 (DeepSeek)
    /// (0.1 · mscale · ln(factor) + 1) / (0.1 · mscale_all_dim · ln(factor) + 1).
    std::optional<double> attention_factor = {};
    double mscale = 0.0;
    double mscale_all_dim = 0.0;
};

/// Llama 3.1's scaling (Meta 2024). With wavelength w = 2π / frequency: kept where w < original_context /
/// high_freq_factor, divided by `factor` where w > original_context / low_freq_factor, a blend of both between.
struct RopeLlama3 {
    double factor = 8.0;  ///< ≥ 1
    double low_freq_factor = 1.0;
    double high_freq_factor = 4.0;         ///< 0 < low_freq_factor < high_freq_factor
    std::int64_t original_context = 8192;  ///< ≥ 1
};

using RopeScaling = std::variant<std::monostate, RopeLinear, RopeNtk, RopeDynamicNtk, RopeYarn, RopeLlama3>;

/// Pair i turns by frequency base^(−2i/R) radians a token, before scaling.
struct RopeOptions {
    std::int64_t rotary_dim = 0;  ///< R, even; the columns after it pass unchanged. 0: all of head_dim
    double base = 10000.0;        ///< > 1; "rope_theta" in configuration files
    RopePairing pairing = RopePairing::half_split;
    RopeScaling scaling = {};
};

/// Where the tokens of a call stand, counted from 0.
struct RopePositions {
    std::int64_t start = 0;                   ///< token t stands at start + t, in every sequence
    std::span<const std::int64_t> each = {};  ///< or, instead: a position per token, [B, T] row-major
    /// RopeDynamicNtk: the length L of the sequences. 0: for each sequence its greatest position in this call plus 1.
    std::int64_t length = 0;
};

/// Turns queries and keys. Holds only what its options say: safe to use from several threads at once.
///
/// Frequencies, angles, cosines and sines are float64, rounded once to the type of computation: f32, or f64 for f64
/// inputs. A row's bits depend on the row and its position alone.
class Rope {
public:
    /// Throws Error(invalid_argument) naming the option that is out of its range, among them an odd rotary_dim or one
    /// past head_dim.
    Rope(const RopeOptions& options, std::int64_t head_dim);

    /// Cosines and sines given: row p of cos and sin is position p. Both [1, 1, positions, R/2] of any float type; they
    /// stay the caller's and must outlive the Rope. (ONNX's RotaryEmbedding: cos_cache and sin_cache.)
    static Rope from_tables(ConstTensorView cos, ConstTensorView sin, std::int64_t head_dim, RopePairing pairing);

    /// out = x, each pair (a, b) of each token turned by its angle φ = position · frequency:
    ///
    ///     a' = m (a cos φ − b sin φ)        b' = m (b cos φ + a sin φ)        m: the attention factor, 1 without YaRN
    ///
    /// x and out [B, H, T, D], f32, bf16, f16 or f64 each, any strides. `out` is x's very view (in place) or does not
    /// overlap it. Throws Error(shape_mismatch | invalid_argument | unsupported | out_of_range) naming the argument,
    /// before anything is written: a position is at least 0 and lies in the table, or below 2³².
    void apply(ConstTensorView x, TensorView out, const RopePositions& positions = {},
               const Runtime& runtime = Runtime::serial()) const;

    /// d_x = the gradient of Σ d_out · apply(x), for any x: the same pairs turned by −φ. Rules as apply's.
    void apply_backward(ConstTensorView d_out, TensorView d_x, const RopePositions& positions = {},
                        const Runtime& runtime = Runtime::serial()) const;

    [[nodiscard]] std::int64_t head_dim() const noexcept { return head_dim_; }
    [[nodiscard]] std::int64_t rotary_dim() const noexcept { return rotary_dim_; }
    /// How many positions there are: the tables' rows, or 2³².
    [[nodiscard]] std::int64_t positions() const noexcept { return cos_ ? cos_->size(2) : kComputedPositions; }
    /// m: what cosines and sines are multiplied by.
    [[nodiscard]] double attention_factor() const noexcept { return attention_factor_; }
    /// Radians a token for each of the R/2 pairs, of a sequence of `length` tokens; the length matters to
    /// RopeDynamicNtk alone. Empty with tables.
    [[nodiscard]] std::vector<double> frequencies(std::int64_t length = 0) const;
    /// Whether a sequence that grows to `length` tokens keeps its frequencies all the way, as keys in a cache need.
    [[nodiscard]] bool steady_up_to(std::int64_t length) const noexcept;

private:
    /// Past it an angle's rounding error, position · 2⁻⁵³, would come near that of f32.
    static constexpr std::int64_t kComputedPositions = std::int64_t{1} << 32;
    template <class T>
    friend class detail::RopeRows;
    Rope() = default;
    void turn(const ConstTensorView& x, const TensorView& out, bool back, const RopePositions& positions,
              const Runtime& runtime) const;
    void check_views(const ConstTensorView& x, const char* x_name, const TensorView& out, const char* out_name) const;
    void check_positions(const RopePositions& positions, std::int64_t batch, std::int64_t tokens) const;

    RopeOptions options_;
    std::int64_t head_dim_ = 0;
    std::int64_t rotary_dim_ = 0;
    double attention_factor_ = 1.0;
    std::optional<ConstTensorView> cos_, sin_;
};

}  // namespace qkv QKV_EXPORT
