// The verbs of layers against the standard library in long double, under every instruction set of the machine, in
// memory that faults when it is touched outside.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/layers.hpp"
#include "support/guard.hpp"
#include "support/instruction_sets.hpp"

namespace qkv::kernels {
namespace {

using support::Guarded;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr long double kUnit = 0x1p-24L;  // of floats

/// An array that ends where memory ends, of normal numbers times `spread`.
template <class T>
struct Array {
    explicit Array(std::int64_t size, std::uint64_t seed = 1, double spread = 1.0)
        : memory(static_cast<std::size_t>(size) * sizeof(T)), data(reinterpret_cast<T*>(memory.data())), count(size) {
        std::mt19937_64 random(seed);
        std::normal_distribution<double> normal(0.0, spread);
        for (std::int64_t i = 0; i < count; ++i) {
            data[i] = static_cast<T>(normal(random));
        }
    }
    [[nodiscard]] std::vector<T> values() const { return {data, data + count}; }
    Guarded memory;
    T* data;
    std::int64_t count;
};

void expect_near(long double found, long double expected, long double bound) {
    EXPECT_LE(std::fabs(found - expected), bound) << found << " for " << expected;
}

class LayerVerbs : public testing::TestWithParam<InstructionSet> {
protected:
    const Layers<float>& verbs = layers<float>(GetParam());
    const Layers<double>& verbs64 = layers<double>(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Sets, LayerVerbs, testing::ValuesIn(support::available_sets()),
                         [](const auto& set) { return std::string(name(set.param)); });

struct Point {
    long double value, slope;
};

constexpr long double kPi = std::numbers::pi_v<long double>;

Point exact_tanh(long double x) {
    const long double root = std::sqrt(2 / kPi);
    const long double u = root * (x + 0.044715L * x * x * x);
    const long double sigma = 1 / (1 + std::exp(-2 * u));
    const long double rest = 1 / (1 + std::exp(2 * u));
    return {x * sigma, sigma + x * sigma * rest * 2 * root * (1 + 3 * 0.044715L * x * x)};
}

Point exact_erf(long double x) {
    const long double integral = std::erfc(-x / std::sqrt(2.0L)) / 2;
    return {x * integral, integral + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi)};
}

/// The largest errors, in units of half an epsilon: of values relative to them, for x < 0 relative to |x| · 2⁻⁸ where
/// that is more; of slopes absolute.
struct GeluErrors {
    long double right = 0, left = 0, slope = 0;
};

/// Both verbs on a grid from −14 to 14 and on the way to 0.
template <class T, class Verb, class Exact>
GeluErrors gelu_errors(Verb forward, Verb backward, const Exact& exact) {
    std::vector<T> grid;
    for (int i = -28000; i <= 28000; ++i) {
        grid.push_back(static_cast<T>(i) / 2000 + static_cast<T>(1e-5));
    }
    for (int power = 0; power > -100; --power) {
        grid.push_back(std::ldexp(T(1.37), power));
        grid.push_back(std::ldexp(T(-1.37), power));
    }
    const Array<T> y(static_cast<std::int64_t>(grid.size()));
    const Array<T> d(y.count);
    std::fill_n(d.data, d.count, T(1));
    forward(y.data, grid.data(), y.count);
    backward(d.data, grid.data(), d.count);
    const long double unit = std::numeric_limits<T>::epsilon() / 2;
    GeluErrors worst;
    for (std::size_t i = 0; i < grid.size(); ++i) {
        const Point point = exact(grid[i]);
        const long double error = std::fabs(y.data[i] - point.value) / unit;
        if (grid[i] > 0) {
            worst.right = std::max(worst.right, error / point.value);
        } else {
            const long double floor = std::fabs(static_cast<long double>(grid[i])) * 0x1p-8L;
            worst.left = std::max(worst.left, error / std::max(std::fabs(point.value), floor));
        }
        worst.slope = std::max(worst.slope, std::fabs(d.data[i] - point.slope) / unit);
    }
    return worst;
}

TEST_P(LayerVerbs, GeluIsWithinItsBound) {
    for (const GeluErrors& worst : {gelu_errors<float>(verbs.gelu_tanh, verbs.gelu_tanh_backward, exact_tanh),
                                    gelu_errors<float>(verbs.gelu_erf, verbs.gelu_erf_backward, exact_erf),
                                    gelu_errors<double>(verbs64.gelu_tanh, verbs64.gelu_tanh_backward, exact_tanh),
                                    gelu_errors<double>(verbs64.gelu_erf, verbs64.gelu_erf_backward, exact_erf)}) {
        EXPECT_LE(worst.right, 10);
        EXPECT_LE(worst.left, 16);
        EXPECT_LE(worst.slope, 6);
    }
}

TEST_P(LayerVerbs, GeluFarOut) {
    const std::vector<float> x{-kInfinity, -3e38F, -1e10F, -100.0F, 100.0F, 1e10F, 3e38F, NAN, 0.0F};
    for (const auto& [forward, backward] :
         {std::pair{verbs.gelu_tanh, verbs.gelu_tanh_backward}, std::pair{verbs.gelu_erf, verbs.gelu_erf_backward}}) {
        std::vector<float> y(x.size());
        std::vector<float> slope(x.size(), 1.0F);
        forward(y.data(), x.data(), std::ssize(x));
        backward(slope.data(), x.data(), std::ssize(x));
        for (std::size_t i = 1; i <= 3; ++i) {
            EXPECT_EQ(y[i], 0.0F) << x[i];
            EXPECT_LE(std::fabs(slope[i]), 1e-25F) << x[i];
        }
        for (std::size_t i = 4; i <= 6; ++i) {
            EXPECT_EQ(y[i], x[i]);
            EXPECT_EQ(slope[i], 1.0F) << x[i];
        }
        EXPECT_TRUE(std::isnan(y[7]) && std::isnan(slope[7]));
        EXPECT_EQ(y[8], 0.0F);
        EXPECT_NEAR(slope[8], 0.5F, 0x1p-24F);
    }
}

/// What stands elsewhere in an array, and how long it is, changes no element.
TEST_P(LayerVerbs, ElementsStandAlone) {
    const Array<float> x(67);
    const Array<float> gradient(67, 2);
    const auto run = [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t count = end - begin;
        std::vector<float> all;
        const auto keep = [&](const Array<float>& array) {
            all.insert(all.end(), array.data, array.data + array.count);
        };
        for (const auto verb : {verbs.gelu_tanh, verbs.gelu_erf}) {
            const Array<float> y(count);
            verb(y.data, x.data + begin, count);
            keep(y);
        }
        for (const auto verb : {verbs.gelu_tanh_backward, verbs.gelu_erf_backward, verbs.add}) {
            const Array<float> d(count);
            std::copy_n(gradient.data + begin, count, d.data);
            verb(d.data, x.data + begin, count);
            keep(d);
        }
        const Array<float> parameter(count), first(count), second(count);
        std::copy_n(x.data + begin, count, parameter.data);
        std::fill_n(first.data, count, 0.25F);
        std::fill_n(second.data, count, 0.5F);
        verbs.adamw(parameter.data, first.data, second.data, gradient.data + begin, count,
                    {.shrink = 0.99F,
                     .one_minus_beta1 = 0.1F,
                     .beta2 = 0.999F,
                     .one_minus_beta2 = 0.001F,
                     .step_size = 0.01F,
                     .root_correction = 0.1F,
                     .eps = 1e-8F});
        keep(parameter);
        keep(first);
        keep(second);
        return all;
    };
    const std::vector<float> whole = run(0, 67);
    for (std::int64_t begin = 0; begin < 35; ++begin) {
        const std::int64_t count = std::min<std::int64_t>(begin, 30) + 1;
        const std::vector<float> part = run(begin, begin + count);
        for (std::int64_t block = 0; block < 8; ++block) {
            ASSERT_EQ(0, std::memcmp(part.data() + block * count, whole.data() + block * 67 + begin,
                                     static_cast<std::size_t>(count) * sizeof(float)))
                << block << ", " << count << " from " << begin;
        }
    }
}

TEST_P(LayerVerbs, LayerNormBothWays) {
    constexpr double kEps = 1e-5;
    for (const auto& [rows, width] :
         {std::pair<std::int64_t, std::int64_t>{1, 1}, {9, 2}, {11, 15}, {8, 16}, {3, 33}, {17, 40}, {1, 768}}) {
        const Array<float> x(rows * width, 1, 3.0), scale(width, 2), shift(width, 3), d_y(rows * width, 4);
        const Array<float> y(rows * width), d_x(rows * width);
        for (std::int64_t i = 0; i < rows * width; ++i) {
            x.data[i] += 5.0F;
        }
        const Array<double> d_scale(width), d_shift(width);
        std::fill_n(d_scale.data, width, 1.0);
        std::fill_n(d_shift.data, width, 2.0);
        verbs.layer_norm(y.data, x.data, scale.data, shift.data, rows, width, kEps);
        verbs.layer_norm_backward(d_x.data, d_scale.data, d_shift.data, x.data, scale.data, d_y.data, rows, width,
                                  kEps);

        const auto count = static_cast<long double>(width);
        std::vector<long double> to_scale(static_cast<std::size_t>(width), 1);
        std::vector<long double> to_shift(static_cast<std::size_t>(width), 2);
        for (std::int64_t row = 0; row < rows; ++row) {
            const float* const x_row = x.data + row * width;
            const float* const d_row = d_y.data + row * width;
            long double mean = 0, squares = 0, g_mean = 0, along = 0;
            for (std::int64_t i = 0; i < width; ++i) {
                mean += x_row[i] / count;
            }
            for (std::int64_t i = 0; i < width; ++i) {
                squares += (x_row[i] - mean) * (x_row[i] - mean) / count;
            }
            const long double inverse = 1 / std::sqrt(squares + kEps);
            const auto normal = [&](std::int64_t i) { return (x_row[i] - mean) * inverse; };
            const auto g = [&](std::int64_t i) { return static_cast<long double>(d_row[i]) * scale.data[i]; };
            for (std::int64_t i = 0; i < width; ++i) {
                g_mean += g(i) / count;
                along += g(i) * normal(i) / count;
            }
            for (std::int64_t i = 0; i < width; ++i) {
                const long double value = normal(i) * scale.data[i] + shift.data[i];
                expect_near(y.data[row * width + i], value, kUnit * std::fabs(value) + 1e-12);
                const long double slope = (g(i) - g_mean - normal(i) * along) * inverse;
                expect_near(d_x.data[row * width + i], slope, kUnit * std::fabs(slope) + 1e-10);
                to_scale[static_cast<std::size_t>(i)] += d_row[i] * normal(i);
                to_shift[static_cast<std::size_t>(i)] += d_row[i];
            }
        }
        for (std::int64_t i = 0; i < width; ++i) {
            expect_near(d_scale.data[i], to_scale[static_cast<std::size_t>(i)], 1e-11);
            expect_near(d_shift.data[i], to_shift[static_cast<std::size_t>(i)], 1e-11);
        }
    }
}

TEST_P(LayerVerbs, SoftmaxOfARow) {
    for (const std::int64_t count : {1, 3, 16, 50, 257, 5003}) {
        const Array<float> x(count, 5, 6.0);
        const std::vector<float> before = x.values();
        const SoftmaxMoments<float> moments = verbs.softmax_moments(x.data, count);
        EXPECT_EQ(moments.maximum, *std::max_element(before.begin(), before.end()));
        long double sum = 0;
        for (const float logit : before) {
            sum += std::exp(static_cast<long double>(logit) - moments.maximum);
        }
        // exp is within one float; a difference of floats is rounded once, which exp makes |difference| times as much.
        expect_near(moments.sum / sum, 1.0, 20 * kUnit);
        verbs.softmax(x.data, count, moments, 0.25);
        for (std::int64_t i = 0; i < count; ++i) {
            const long double from = before[static_cast<std::size_t>(i)] - static_cast<long double>(moments.maximum);
            const long double expected = std::exp(from) / moments.sum / 4;
            expect_near(x.data[i], expected, (5 - from) * kUnit * expected + 1e-38L);
        }
    }
}

TEST_P(LayerVerbs, SoftmaxOfNaNAndInfinityHasNoSum) {
    for (const float bad : {kInfinity, static_cast<float>(NAN)}) {
        for (std::int64_t at = 0; at < 40; ++at) {
            const Array<float> x(40);
            x.data[at] = bad;
            EXPECT_TRUE(std::isnan(verbs.softmax_moments(x.data, 40).sum)) << bad << ' ' << at;
        }
    }
    const Array<float> x(40);
    std::fill_n(x.data, 39, -kInfinity);
    EXPECT_EQ(verbs.softmax_moments(x.data, 40).sum, 1.0);
}

TEST_P(LayerVerbs, AdamWIsItsFormula) {
    const Array<double> p(37), m(37, 2), v(37, 3), g(37, 4);
    for (std::int64_t i = 0; i < 37; ++i) {
        v.data[i] *= v.data[i];
    }
    const std::vector<double> p0 = p.values(), m0 = m.values(), v0 = v.values();
    verbs64.adamw(p.data, m.data, v.data, g.data, 37,
                  {.shrink = 0.99,
                   .one_minus_beta1 = 0.1,
                   .beta2 = 0.95,
                   .one_minus_beta2 = 0.05,
                   .step_size = 0.03,
                   .root_correction = 0.4,
                   .eps = 1e-3});
    for (std::size_t i = 0; i < 37; ++i) {
        const double first = 0.9 * m0[i] + 0.1 * g.data[i];
        const double second = 0.95 * v0[i] + 0.05 * g.data[i] * g.data[i];
        expect_near(m.data[i], first, 1e-14);
        expect_near(v.data[i], second, 1e-14);
        expect_near(p.data[i], 0.99 * p0[i] - 0.03 * first / (std::sqrt(second) / 0.4 + 1e-3), 1e-14);
    }
}

TEST_P(LayerVerbs, SumsDropAndScale) {
    for (const std::int64_t count : {0, 1, 15, 16, 17, 100}) {
        const Array<float> x(count);
        const std::vector<float> before = x.values();
        long double squares = 0;
        for (const float value : before) {
            squares += static_cast<long double>(value) * value;
        }
        expect_near(verbs.sum_of_squares(x.data, count), squares, 1e-12);
        const Guarded keep(static_cast<std::size_t>(count));
        auto* const bytes = reinterpret_cast<std::uint8_t*>(keep.data());
        for (std::int64_t i = 0; i < count; ++i) {
            bytes[i] = static_cast<std::uint8_t>(i % 3);
        }
        if (count > 3) {
            x.data[3] = NAN;  // dropped, so gone
        }
        const Array<float> elsewhere(count);
        verbs.drop(elsewhere.data, x.data, bytes, count, 1.25F);
        verbs.drop(x.data, x.data, bytes, count, 1.25F);
        EXPECT_EQ(elsewhere.values(), x.values());
        verbs.scale(x.data, count, 0.5);
        for (std::int64_t i = 0; i < count; ++i) {
            EXPECT_EQ(x.data[i], i % 3 == 0 ? 0.0F : before[static_cast<std::size_t>(i)] * 1.25F * 0.5F);
        }
    }
}

}  // namespace
}  // namespace qkv::kernels
