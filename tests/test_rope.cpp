// Rotary position embedding against complex numbers in long double, and its rules: bits, positions, gradients.
#include <gtest/gtest.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <complex>
#include <string>
#include <vector>

#include "qkv/rope.hpp"
#include "support/compare.hpp"
#include "support/small.hpp"
#include "support/stored.hpp"

namespace qkv {
namespace {

using support::Layout;
using support::Random;
using support::Stored;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// base^(−2i/R), in long double.
std::vector<double> plain_frequencies(double base, std::int64_t rotary_dim) {
    std::vector<double> frequencies;
    for (std::int64_t column = 0; column < rotary_dim; column += 2) {
        frequencies.push_back(static_cast<double>(std::pow(
            static_cast<long double>(base), -static_cast<long double>(column) / static_cast<long double>(rotary_dim))));
    }
    return frequencies;
}

/// One row: pairs as complex numbers times m·e^(iφ); `sizes` gets m(|a| + |b|) of each column's pair.
std::vector<double> turned(const std::vector<double>& row, std::int64_t position,
                           const std::vector<double>& frequencies, RopePairing pairing, double factor,
                           std::vector<double>& sizes) {
    std::vector<double> result = row;
    sizes.assign(row.size(), 0.0);
    for (std::size_t pair = 0; pair < frequencies.size(); ++pair) {
        const std::size_t first = pairing == RopePairing::half_split ? pair : 2 * pair;
        const std::size_t second = pairing == RopePairing::half_split ? pair + frequencies.size() : 2 * pair + 1;
        const auto angle = static_cast<long double>(position) * static_cast<long double>(frequencies[pair]);
        const std::complex<long double> z =
            std::complex<long double>(row[first], row[second]) * std::polar(static_cast<long double>(factor), angle);
        result[first] = static_cast<double>(z.real());
        result[second] = static_cast<double>(z.imag());
        sizes[first] = sizes[second] = factor * (std::fabs(row[first]) + std::fabs(row[second]));
    }
    return result;
}

std::vector<double> row_of(const std::vector<double>& values, std::int64_t row, std::int64_t head_dim) {
    return {values.begin() + row * head_dim, values.begin() + (row + 1) * head_dim};
}

/// f32: cos or sin, product and sum round once each. f64: also the angle, whose frequency and product are a few
/// roundings off. Then the result is rounded to its type, whose smallest step is that of its subnormals.
double allowed_error(DType in, DType out, double size, double result, std::int64_t position) {
    const double unit = in == DType::f64 ? 0x1p-53 : 0x1p-24;
    const double angle = 4.0 * 0x1p-53 * static_cast<double>(position);
    const double step = out == DType::f16 ? 0x1p-25 : 0.0;
    return size * (3.5 * unit + angle) + 1.01 * support::epsilon(out) * std::fabs(result) + step;
}

void expect_row(const std::vector<double>& got, const std::vector<double>& x, std::int64_t position,
                const std::vector<double>& frequencies, RopePairing pairing, double factor, DType in, DType out) {
    std::vector<double> sizes;
    const std::vector<double> expected = turned(x, position, frequencies, pairing, factor, sizes);
    for (std::size_t column = 0; column < x.size(); ++column) {
        ASSERT_NEAR(got[column], expected[column], allowed_error(in, out, sizes[column], expected[column], position))
            << "column " << column << ", position " << position;
    }
}

std::string named(DType in, DType out) { return std::string(name(in)) + " to " + name(out); }

TEST(Rope, TurnsByOneRadianAToken) {
    const Rope rope({}, 2);
    std::vector<float> x{1, 0, 1, 0, 1, 0};
    rope.apply(view(x.data(), {1, 1, 3, 2}), view(x.data(), {1, 1, 3, 2}));
    for (int token = 0; token < 3; ++token) {
        EXPECT_FLOAT_EQ(x[static_cast<std::size_t>(2 * token)], static_cast<float>(std::cos(token)));
        EXPECT_FLOAT_EQ(x[static_cast<std::size_t>(2 * token + 1)], static_cast<float>(std::sin(token)));
    }
}

TEST(Rope, EqualsComplexNumbersInEveryTypeLayoutAndPairing) {
    Random random(1);
    for (int round = 0; round < 400; ++round) {
        const std::int64_t head_dim = support::pick(random, 2, 40);
        const std::int64_t rotary_dim = 2 * support::pick(random, 1, head_dim / 2);
        const Shape4 shape{support::pick(random, 1, 3), support::pick(random, 1, 3), support::pick(random, 1, 9),
                           head_dim};
        const DType in = kTypes[support::pick(random, 0, 3)];
        const DType out = kTypes[support::pick(random, 0, 3)];
        const auto pairing = static_cast<RopePairing>(support::pick(random, 0, 1));
        const double base = support::chance(random, 0.5) ? 10000.0 : 500000.0;
        const Rope rope({.rotary_dim = rotary_dim, .base = base, .pairing = pairing}, head_dim);
        SCOPED_TRACE(testing::Message() << "round " << round << ", " << named(in, out) << ", R " << rotary_dim << " of "
                                        << head_dim << ", pairing " << static_cast<int>(pairing));

        std::vector<std::int64_t> each;
        RopePositions positions{.start = support::pick(random, 0, 100000)};
        if (support::chance(random, 0.5)) {
            for (std::int64_t i = 0; i < shape[0] * shape[2]; ++i) {
                each.push_back(support::pick(random, 0, support::chance(random, 0.1) ? 4294967295 : 5000));
            }
            positions = {.each = each};
        }
        const Stored x = support::allocate(shape, in, support::pick_layout(random), support::pick_side(random));
        const Stored y = support::allocate(shape, out, support::pick_layout(random), support::pick_side(random));
        const std::int64_t rows = shape[0] * shape[1] * shape[2];
        const std::vector<double> values = support::normals(random, rows * head_dim, in);
        support::write(x.view, values);
        rope.apply(x.view, y.view, positions);
        const std::vector<double> got = support::read(y.view);
        const std::vector<double> frequencies = plain_frequencies(base, rotary_dim);
        for (std::int64_t row = 0; row < rows; ++row) {
            const std::int64_t sequence = row / (shape[1] * shape[2]);
            const std::int64_t token = row % shape[2];
            const std::int64_t position =
                each.empty() ? positions.start + token : each[static_cast<std::size_t>(sequence * shape[2] + token)];
            expect_row(row_of(got, row, head_dim), row_of(values, row, head_dim), position, frequencies, pairing, 1.0,
                       in, out);
        }
        EXPECT_EQ(support::read(x.view), values);  // out of place leaves x alone
        if (in == out) {
            rope.apply(x.view, x.view, positions);
            EXPECT_EQ(support::read(x.view), got) << "in place";
        }
    }
}

TEST(Rope, ProductsDependOnTheDistanceAlone) {
    Random random(2);
    const Rope rope({}, 8);
    const std::vector<double> q = support::normals(random, 8, DType::f64);
    const std::vector<double> k = support::normals(random, 8, DType::f64);
    const auto product = [&](std::int64_t query_at, std::int64_t key_at) {
        std::vector<double> a(8);
        std::vector<double> b(8);
        rope.apply(view(q.data(), {1, 1, 1, 8}), view(a.data(), {1, 1, 1, 8}), {.start = query_at});
        rope.apply(view(k.data(), {1, 1, 1, 8}), view(b.data(), {1, 1, 1, 8}), {.start = key_at});
        double sum = 0;
        for (std::size_t i = 0; i < 8; ++i) {
            sum += a[i] * b[i];
        }
        return sum;
    };
    EXPECT_NEAR(product(7, 3), product(1007, 1003), 1e-11);
    EXPECT_GT(std::fabs(product(7, 3) - product(7, 4)), 1e-3);
}

TEST(Rope, NtkSlowsTheSlowestPairByTheFactor) {
    const std::vector<double> plain = Rope({}, 16).frequencies();
    const std::vector<double> slowed = Rope({.scaling = RopeNtk{4.0}}, 16).frequencies();
    EXPECT_EQ(slowed.front(), 1.0);
    EXPECT_NEAR(slowed.back(), plain.back() / 4.0, 1e-15 * plain.back());
    for (std::size_t pair = 1; pair < plain.size(); ++pair) {
        EXPECT_LT(slowed[pair], plain[pair]);
        EXPECT_GT(slowed[pair] / plain[pair], slowed.back() / plain.back() - 1e-12);
    }
}

TEST(Rope, DynamicNtkFollowsEachSequencesLength) {
    const RopeDynamicNtk scaling{.factor = 2.0, .original_context = 8};
    const Rope rope({.scaling = scaling}, 8);
    EXPECT_EQ(rope.frequencies(8), Rope({}, 8).frequencies());
    EXPECT_EQ(rope.frequencies(12), Rope({.scaling = RopeNtk{2.0}}, 8).frequencies());  // 2 · 12/8 − 1
    EXPECT_TRUE(rope.steady_up_to(8));
    EXPECT_FALSE(rope.steady_up_to(9));
    EXPECT_TRUE(Rope({}, 8).steady_up_to(1 << 20));

    Random random(3);
    const std::vector<double> x = support::normals(random, 2 * 3 * 8, DType::f32);
    const std::vector<float> values(x.begin(), x.end());
    // Both begin at position 1, one is 4 tokens long and one 12.
    const std::vector<std::int64_t> each{1, 2, 3, 1, 10, 11};
    std::vector<float> got(values.size());
    rope.apply(view(values.data(), {2, 1, 3, 8}), view(got.data(), {2, 1, 3, 8}), {.each = each});
    // The same with the frequencies spelled out, one sequence at a time.
    std::vector<float> expected(values.size());
    const std::span<const std::int64_t> long_one = std::span(each).last(3);
    Rope({}, 8).apply(view(values.data(), {1, 1, 3, 8}), view(expected.data(), {1, 1, 3, 8}), {.start = 1});
    Rope({.scaling = RopeNtk{2.0}}, 8)
        .apply(view(values.data() + 24, {1, 1, 3, 8}), view(expected.data() + 24, {1, 1, 3, 8}), {.each = long_one});
    EXPECT_TRUE(support::same_bits(got, expected));
    // A start instead of positions.
    rope.apply(view(values.data() + 24, {1, 1, 3, 8}), view(got.data() + 24, {1, 1, 3, 8}), {.start = 9});
    Rope({.scaling = RopeNtk{2.0}}, 8)
        .apply(view(values.data() + 24, {1, 1, 3, 8}), view(expected.data() + 24, {1, 1, 3, 8}), {.start = 9});
    EXPECT_TRUE(support::same_bits(got, expected));
    // A length given counts for all.
    rope.apply(view(values.data(), {2, 1, 3, 8}), view(got.data(), {2, 1, 3, 8}), {.length = 12});
    Rope({.scaling = RopeNtk{2.0}}, 8).apply(view(values.data(), {2, 1, 3, 8}), view(expected.data(), {2, 1, 3, 8}));
    EXPECT_TRUE(support::same_bits(got, expected));
}

TEST(Rope, ARowsBitsDependOnItAndItsPositionAlone) {
    constexpr std::int64_t kTokens = 200;
    const Shape4 shape{2, 3, kTokens, 16};
    Random random(4);
    for (const RopeScaling& scaling : {RopeScaling{}, RopeScaling{RopeYarn{.factor = 4.0, .original_context = 64}}}) {
        const Rope rope({.scaling = scaling}, 16);
        const std::vector<double> normals = support::normals(random, 2 * 3 * kTokens * 16, DType::f32);
        const std::vector<float> x(normals.begin(), normals.end());
        std::vector<float> whole(x.size());
        rope.apply(view(x.data(), shape), view(whole.data(), shape), {.start = 5});
        std::vector<float> threads(x.size());
        const Runtime four(4);
        rope.apply(view(x.data(), shape), view(threads.data(), shape), {.start = 5}, four);
        EXPECT_TRUE(support::same_bits(whole, threads));
        std::vector<float> apart(x.size());
        const Shape4 strides = contiguous_strides(shape);
        for (std::int64_t sequence = 0; sequence < 2; ++sequence) {
            for (std::int64_t token = 0; token < kTokens; ++token) {
                const std::int64_t at = sequence * strides[0] + token * strides[2];
                rope.apply(view(x.data() + at, {1, 3, 1, 16}, strides), view(apart.data() + at, {1, 3, 1, 16}, strides),
                           {.start = 5 + token});
            }
        }
        EXPECT_TRUE(support::same_bits(whole, apart));
    }
}

#if defined(__x86_64__)
TEST(Rope, BitsDoNotDependOnTheCallersFloatModes) {
    Random random(8);
    const std::vector<double> normals = support::normals(random, 40 * 8, DType::f32, 0x1p-128);  // many subnormal
    const std::vector<float> x(normals.begin(), normals.end());
    const Shape4 shape{1, 1, 40, 8};
    const auto turned = [&] {
        std::vector<float> y(x.size());
        Rope({.scaling = RopeYarn{.factor = 4.0, .original_context = 16}}, 8)
            .apply(view(x.data(), shape), view(y.data(), shape), {.start = 1000});
        return y;
    };
    const std::vector<float> expected = turned();
    const unsigned saved = _mm_getcsr();
    for (const unsigned modes : {0x8040U /* flush to zero, subnormals are zero */, 0x6000U /* round towards zero */}) {
        _mm_setcsr(saved | modes);
        const std::vector<float> got = turned();
        const unsigned after = _mm_getcsr();
        _mm_setcsr(saved);
        EXPECT_EQ(after & ~0x3FU, (saved | modes) & ~0x3FU);
        EXPECT_TRUE(support::same_bits(got, expected)) << std::hex << modes;
    }
}
#endif

TEST(Rope, WhatIsNotTurnedPassesUnchanged) {
    for (const DType type : kTypes) {
        SCOPED_TRACE(name(type));
        const Stored x = support::allocate({1, 1, 2, 6}, type, Layout::padded);  // all NaN
        const Stored y = support::allocate({1, 1, 2, 6}, type);
        for (std::int64_t token = 0; token < 2; ++token) {
            for (std::int64_t column = 0; column < 4; ++column) {
                support::write_one(x.view, 0, 0, token, column, 1.0);
            }
            support::write_one(y.view, 0, 0, token, 4, 0.0);
        }
        support::write_one(x.view, 0, 0, 1, 5, -0.0);
        Rope({.rotary_dim = 4}, 6).apply(x.view, y.view);
        const std::vector<double> got = support::read(y.view);
        for (const std::size_t turned : {0U, 1U, 2U, 3U, 6U, 7U, 8U, 9U}) {
            EXPECT_TRUE(std::isfinite(got[turned])) << turned;
        }
        EXPECT_TRUE(std::isnan(got[4]) && std::isnan(got[5]) && std::isnan(got[10]));
        EXPECT_TRUE(got[11] == 0.0 && std::signbit(got[11]));
    }
}

TEST(Rope, GradientsAreTheSlopes) {
    Random random(5);
    const std::vector<RopeScaling> scalings{{},
                                            RopeLinear{2.0},
                                            RopeNtk{2.0},
                                            RopeDynamicNtk{2.0, 4},
                                            RopeYarn{.factor = 4.0, .original_context = 16},
                                            RopeLlama3{.original_context = 64}};
    const Shape4 shape{2, 2, 3, 10};
    for (const RopeScaling& scaling : scalings) {
        for (const RopePairing pairing : {RopePairing::half_split, RopePairing::interleaved}) {
            SCOPED_TRACE(testing::Message()
                         << "scaling " << scaling.index() << ", pairing " << static_cast<int>(pairing));
            const Rope rope({.rotary_dim = 8, .pairing = pairing, .scaling = scaling}, 10);
            const RopePositions positions{.start = 7};
            std::vector<double> x = support::normals(random, 120, DType::f64);
            const std::vector<double> d_out = support::normals(random, 120, DType::f64);
            std::vector<double> d_x(120);
            rope.apply_backward(view(d_out.data(), shape), view(d_x.data(), shape), positions);
            const auto loss = [&] {
                std::vector<double> y(120);
                rope.apply(view(x.data(), shape), view(y.data(), shape), positions);
                double sum = 0;
                for (std::size_t i = 0; i < y.size(); ++i) {
                    sum += y[i] * d_out[i];
                }
                return sum;
            };
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double before = x[i];
                x[i] = before + 0.5;
                const double above = loss();
                x[i] = before - 0.5;
                const double slope = above - loss();  // exact but for rounding: the loss is linear in x
                x[i] = before;
                ASSERT_NEAR(d_x[i], slope, 1e-12) << i;
            }
            std::vector<double> in_place = d_out;
            rope.apply_backward(view(in_place.data(), shape), view(in_place.data(), shape), positions);
            EXPECT_TRUE(support::same_bits(in_place, d_x));
        }
    }
}

TEST(RopeTables, RowsAreLookedUpByPosition) {
    Random random(6);
    for (const DType type : kTypes) {
        for (const RopePairing pairing : {RopePairing::half_split, RopePairing::interleaved}) {
            SCOPED_TRACE(testing::Message() << name(type) << ", pairing " << static_cast<int>(pairing));
            // Any numbers: not even cosines and sines.
            const Stored cos = support::allocate({1, 1, 7, 3}, type, support::pick_layout(random));
            const Stored sin = support::allocate({1, 1, 7, 3}, type, support::pick_layout(random));
            const std::vector<double> c = support::normals(random, 21, type);
            const std::vector<double> s = support::normals(random, 21, type);
            support::write(cos.view, c);
            support::write(sin.view, s);
            const Rope rope = Rope::from_tables(cos.view, sin.view, 8, pairing);
            EXPECT_EQ(rope.rotary_dim(), 6);
            EXPECT_EQ(rope.head_dim(), 8);
            EXPECT_TRUE(rope.frequencies().empty());
            const std::vector<std::int64_t> each{6, 0, 3, 3};
            const std::vector<double> x = support::normals(random, 32, DType::f64);
            std::vector<double> y(32);
            rope.apply(view(x.data(), {2, 1, 2, 8}), view(y.data(), {2, 1, 2, 8}), {.each = each});
            for (std::size_t token = 0; token < 4; ++token) {
                for (std::size_t pair = 0; pair < 3; ++pair) {
                    const std::size_t row = 8 * token;
                    const std::size_t a = row + (pairing == RopePairing::half_split ? pair : 2 * pair);
                    const std::size_t b = row + (pairing == RopePairing::half_split ? pair + 3 : 2 * pair + 1);
                    const std::size_t at = 3 * static_cast<std::size_t>(each[token]) + pair;
                    EXPECT_DOUBLE_EQ(y[a], x[a] * c[at] - x[b] * s[at]);
                    EXPECT_DOUBLE_EQ(y[b], x[b] * c[at] + x[a] * s[at]);
                }
                EXPECT_EQ(y[8 * token + 6], x[8 * token + 6]);
                EXPECT_EQ(y[8 * token + 7], x[8 * token + 7]);
            }
        }
    }
}

TEST(RopeTables, EqualTheAnglesTheyHold) {
    constexpr std::int64_t kPositions = 50;
    std::vector<double> cos;
    std::vector<double> sin;
    for (std::int64_t position = 0; position < kPositions; ++position) {
        for (const double frequency : Rope({}, 8).frequencies()) {
            cos.push_back(std::cos(static_cast<double>(position) * frequency));
            sin.push_back(std::sin(static_cast<double>(position) * frequency));
        }
    }
    const Rope tables = Rope::from_tables(view(cos.data(), {1, 1, kPositions, 4}),
                                          view(sin.data(), {1, 1, kPositions, 4}), 8, RopePairing::half_split);
    Random random(7);
    const std::vector<double> x = support::normals(random, 50 * 8, DType::f64);
    std::vector<double> computed(x.size());
    std::vector<double> looked_up(x.size());
    const Shape4 shape{1, 1, kPositions, 8};
    Rope({}, 8).apply(view(x.data(), shape), view(computed.data(), shape));
    tables.apply(view(x.data(), shape), view(looked_up.data(), shape));
    EXPECT_TRUE(support::same_bits(computed, looked_up));
    tables.apply_backward(view(x.data(), shape), view(looked_up.data(), shape));
    Rope({}, 8).apply_backward(view(x.data(), shape), view(computed.data(), shape));
    EXPECT_TRUE(support::same_bits(computed, looked_up));
}

}  // namespace
}  // namespace qkv
