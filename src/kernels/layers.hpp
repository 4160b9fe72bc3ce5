// What the layers of a network do to numbers outside products and attention, one table per instruction set. Arrays are
// of any length and alignment; an element's bits do not depend on where in an array it stands.
#pragma once

#include <cstdint>

#include "qkv/instruction_set.hpp"

namespace qkv::kernels {

/// The numbers of one step of AdamW (Loshchilov & Hutter 2019) that all elements share.
template <class A>
struct AdamWStep {
    A shrink;  ///< 1 − lr · weight_decay
    A one_minus_beta1;
    A beta2;
    A one_minus_beta2;
    A step_size;        ///< lr / (1 − beta1ᵗ)
    A root_correction;  ///< √(1 − beta2ᵗ)
    A eps;
};

/// A row on its way to a softmax: exp(x − maximum) / sum. NaN or ∞ among the numbers makes the sum NaN.
template <class A>
struct SoftmaxMoments {
    A maximum;
    double sum;
};

/// With φ the standard normal density and Φ its integral, GELU(x) = x Φ(x) (Hendrycks & Gimpel 2016), or with
/// x σ(2u), u = √(2/π) (x + 0.044715 x³), in its place. In units of half an epsilon of A, values are within 10 of the
/// exact one for x > 0, relative to it, and for x < 0 within 16, relative to it or to |x| · 2⁻⁸, whichever is more;
/// slopes are within 6.
template <class A>
struct Layers {
    /// y ← GELU(x); y may be x.
    void (*gelu_tanh)(A* y, const A* x, std::int64_t count);
    void (*gelu_erf)(A* y, const A* x, std::int64_t count);
    /// d ← d · GELU'(x)
    void (*gelu_tanh_backward)(A* d, const A* x, std::int64_t count);
    void (*gelu_erf_backward)(A* d, const A* x, std::int64_t count);

    /// For each row, y ← (x − mean) / √(variance + eps) · scale + shift, in double until it is stored.
    void (*layer_norm)(A* y, const A* x, const A* scale, const A* shift, std::int64_t rows, std::int64_t width,
                       double eps);
    /// For each row, in their order, with n the normalised row and g = d_y · scale, d_x ← (g − mean(g) − n · mean(g ·
    /// n)) / √(variance + eps), d_scale += d_y · n, d_shift += d_y.
    void (*layer_norm_backward)(A* d_x, double* d_scale, double* d_shift, const A* x, const A* scale, const A* d_y,
                                std::int64_t rows, std::int64_t width, double eps);

    SoftmaxMoments<A> (*softmax_moments)(const A* x, std::int64_t count);
    /// x ← factor · softmax(x)
    void (*softmax)(A* x, std::int64_t count, const SoftmaxMoments<A>& moments, double factor);

    /// a ← a + b
    void (*add)(A* a, const A* b, std::int64_t count);
    /// x ← factor · x
    void (*scale)(A* x, std::int64_t count, double factor);
    /// y ← scale · x where `keep` is not 0, else 0; y may be x.
    void (*drop)(A* y, const A* x, const std::uint8_t* keep, std::int64_t count, A scale);
    double (*sum_of_squares)(const A* x, std::int64_t count);
    /// One step of `parameter` and its moments along `gradient`.
    void (*adamw)(A* parameter, A* first, A* second, const A* gradient, std::int64_t count, const AdamWStep<A>& step);
};

template <class A>
[[nodiscard]] const Layers<A>& layers(InstructionSet set) noexcept;

}  // namespace qkv::kernels
