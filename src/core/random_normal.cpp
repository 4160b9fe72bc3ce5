// Normal draws by Box and Muller (1958), along PyTorch's two paths: one value at a time in double for fewer than 16,
// blocks of 16 in the tensor's own type for more. The float block path uses the single-precision logarithm and
// sine/cosine of Cephes (S. L. Moshier; vectorised by J. Pommier in avx_mathfun.h), where every std::fma stands at a
// place that PyTorch's compiler fuses: the bits depend on it.
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <utility>

#include "core/check.hpp"
#include "qkv/random.hpp"

namespace qkv {
namespace {

constexpr std::size_t kBlock = 16;
constexpr std::size_t kPairs = kBlock / 2;

/// c[0] x^(n-1) + ... + c[n-1].
template <std::size_t n>
float polynomial(float x, const std::array<float, n>& coefficients) {
    float sum = coefficients[0];
    for (std::size_t i = 1; i < n; ++i) {
        sum = std::fma(sum, x, coefficients[i]);
    }
    return sum;
}

/// Natural logarithm of a normal x > 0: x = (1 + t) 2^e with 1 + t in [sqrt(1/2), sqrt(2)), log x = log(1 + t) + e
/// log 2.
float natural_log(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const float half_to_one = std::bit_cast<float>((bits & 0x7FFFFFU) | 0x3F000000U);
    const bool small = half_to_one < std::numbers::sqrt2_v<float> / 2;
    const float t = (half_to_one - 1) + (small ? half_to_one : 0.0F);
    const float e = static_cast<float>(static_cast<std::int32_t>(bits >> 23U) - 126) - (small ? 1.0F : 0.0F);

    const float t2 = t * t;
    const float series = t * polynomial<9>(t, {7.0376836292E-2F, -1.1514610310E-1F, 1.1676998740E-1F, -1.2420140846E-1F,
                                               1.4249322787E-1F, -1.6668057665E-1F, 2.0000714765E-1F, -2.4999993993E-1F,
                                               3.3333331174E-1F});
    // log 2 in two parts, the second short enough that e times it is exact.
    const float tail = std::fma(t2, -0.5F, std::fma(series, t2, e * -2.12194440e-4F));
    return std::fma(e, 0.693359375F, t + tail);
}

double natural_log(double x) { return std::log(x); }

template <class T>
struct SinCos {
    T sin;
    T cos;
};

/// Sine and cosine of x >= 0, from x less an even number of quarter-pi steps.
SinCos<float> sin_cos(float x) {
    const std::int32_t octant = (static_cast<std::int32_t>(x * static_cast<float>(4 * std::numbers::inv_pi)) + 1) & ~1;
    const float steps = static_cast<float>(octant);
    float r = x;
    for (const float part_of_quarter_pi : {0.78515625F, 2.4187564849853515625e-4F, 3.77489497744594108e-8F}) {
        r = std::fma(steps, -part_of_quarter_pi, r);
    }
    const float r2 = r * r;
    const float cos_series =
        r2 * polynomial<3>(r2, {2.443315711809948E-005F, -1.388731625493765E-003F, 4.166664568298827E-002F});
    const float cosine = std::fma(cos_series, r2, -(r2 * 0.5F)) + 1;
    const float sin_series = r2 * polynomial<3>(r2, {-1.9515295891E-4F, 8.3321608736E-3F, -1.6666654611E-1F});
    const float sine = std::fma(sin_series, r, r);

    const bool swapped = (octant & 2) != 0;
    const float sin_sign = (octant & 4) != 0 ? -1.0F : 1.0F;
    const float cos_sign = ((octant - 2) & 4) == 0 ? -1.0F : 1.0F;
    return {.sin = sin_sign * (swapped ? cosine : sine), .cos = cos_sign * (swapped ? sine : cosine)};
}

SinCos<double> sin_cos(double x) { return {.sin = std::sin(x), .cos = std::cos(x)}; }

/// Turns 16 uniforms into 16 normals: value j and value j + 8 make a pair.
template <class T>
void box_muller(std::span<T, kBlock> block, T mean, T std) {
    for (std::size_t j = 0; j < kPairs; ++j) {
        const T radius = std::sqrt(T{-2} * natural_log(1 - block[j]));
        const SinCos<T> direction = sin_cos(static_cast<T>(2 * std::numbers::pi) * block[j + kPairs]);
        block[j] = std::fma(radius * direction.cos, std, mean);
        block[j + kPairs] = std::fma(radius * direction.sin, std, mean);
    }
}

template <class T>
void box_muller_blocks(std::span<T> values, T mean, T std) {
    for (; values.size() >= kBlock; values = values.subspan(kBlock)) {
        box_muller(values.template first<kBlock>(), mean, std);
    }
}

}  // namespace

/// One standard normal in double; the second of a pair waits in the generator for the next call.
double Generator::scalar_normal() {
    if (cached_normal_) {
        const double second = *cached_normal_;
        cached_normal_.reset();
        return second;
    }
    std::array<double, 2> uniform{};
    uniform_<double>(uniform, 0, 1);
    const double radius = std::sqrt(-2 * std::log1p(-uniform[1]));
    const SinCos<double> direction = sin_cos(2 * std::numbers::pi * uniform[0]);
    cached_normal_ = radius * direction.sin;
    return radius * direction.cos;
}

template <class T>
void Generator::normal_(std::span<T> values, double mean, double std) {
    const T center = static_cast<T>(mean);
    const T scale = static_cast<T>(std);
    if (!(std >= 0) || !std::isfinite(center) || !std::isfinite(scale)) {
        fail(ErrorCode::invalid_argument, "normal_: mean is ", mean, " and std ", std,
             "; expected both finite in float", 8 * sizeof(T), " and std >= 0");
    }
    if (values.size() < kBlock) {
        for (T& value : values) {
            value = static_cast<T>(std::fma(scalar_normal(), std, mean));
        }
        return;
    }
    uniform_(values, 0, 1);
    box_muller_blocks(values, center, scale);
    if (values.size() % kBlock != 0) {  // the last block overlaps the one before it and is drawn afresh
        const std::span<T> last = values.last(kBlock);
        uniform_(last, 0, 1);
        box_muller_blocks(last, center, scale);
    }
}

template <class T>
BasicTensor<T> Generator::randn(Shape shape) {
    BasicTensor<T> tensor(std::move(shape));
    normal_(tensor.values(), 0, 1);
    return tensor;
}

template void Generator::normal_(std::span<float>, double, double);
template void Generator::normal_(std::span<double>, double, double);
template BasicTensor<float> Generator::randn(Shape);
template BasicTensor<double> Generator::randn(Shape);

}  // namespace qkv
