// exp, tanh and the 16-bit types: the numbers under everything else.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "core/exp.hpp"
#include "qkv/types.hpp"
#include "support/oracle.hpp"

namespace qkv {
namespace {

/// Floats between a and b, both finite and of one sign.
std::int64_t floats_apart(float a, float b) {
    return std::abs(static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(a)) -
                    static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(b)));
}

// All 2^32 floats with QKV_TEST_EXP_STEP=1; otherwise every 257th, which reaches each binade and sign.
TEST(Exp, IsWithinOneFloatDownToItsCutAndZeroBelow) {
    const char* text = std::getenv("QKV_TEST_EXP_STEP");
    const std::uint64_t step = text == nullptr ? 257 : std::strtoull(text, nullptr, 10);
    std::int64_t worst = 0;
    for (std::uint64_t bits = 0; bits <= 0xFFFFFFFFU; bits += step) {
        const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
        const float got = exp_fast(x);
        if (std::isnan(x)) {
            ASSERT_TRUE(std::isnan(got));
        } else if (x < -87.33F) {
            ASSERT_EQ(std::bit_cast<std::uint32_t>(got), 0U) << x;
        } else {
            const auto expected = static_cast<float>(std::exp(static_cast<double>(x)));
            worst = std::max(worst, floats_apart(got, expected));
            ASSERT_LE(floats_apart(got, expected), 1) << x;
        }
    }
    EXPECT_EQ(exp_fast(0.0F), 1.0F);
    EXPECT_EQ(worst, 1);
}

TEST(Exp, HasItsEdges) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    EXPECT_EQ(exp_fast(-kInfinity), 0.0F);
    EXPECT_EQ(exp_fast(kInfinity), kInfinity);
    EXPECT_EQ(exp_fast(89.0F), kInfinity);
    EXPECT_TRUE(std::isfinite(exp_fast(88.72F)));
    EXPECT_GT(exp_fast(-87.33F), std::numeric_limits<float>::min());
    EXPECT_EQ(exp_fast(std::nextafter(-87.33F, -88.0F)), 0.0F);
}

TEST(Tanh, IsAccurateNearZeroAndFarFromIt) {
    float x = 1e-30F;
    while (x < 40.0F) {
        x *= 1.0007F;
        const auto expected = static_cast<float>(std::tanh(static_cast<double>(x)));
        ASSERT_LE(floats_apart(tanh_fast(x), expected), 2) << x;
        ASSERT_EQ(tanh_fast(-x), -tanh_fast(x));
    }
    EXPECT_EQ(tanh_fast(std::numeric_limits<float>::infinity()), 1.0F);
    EXPECT_TRUE(std::isnan(tanh_fast(std::nanf(""))));
}

TEST(HalfTypes, HoldEveryValueOfTheirFormat) {
    for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
        Float16 half;
        half.bits = static_cast<std::uint16_t>(bits);
        const std::uint32_t exponent = (bits >> 10U) & 0x1FU;
        const double fraction = static_cast<double>(bits & 0x3FFU);
        double expected =
            exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25);
        expected = exponent == 0x1F ? std::numeric_limits<double>::infinity() : expected;
        expected = (bits & 0x8000U) != 0 ? -expected : expected;
        const auto value = static_cast<float>(half);
        if (exponent == 0x1F && fraction != 0.0) {
            ASSERT_TRUE(std::isnan(value));
            ASSERT_TRUE(std::isnan(static_cast<float>(Float16(value))));
        } else {
            ASSERT_EQ(static_cast<double>(value), expected) << bits;
            ASSERT_EQ(Float16(value).bits, bits);
        }
        BFloat16 brain;
        brain.bits = static_cast<std::uint16_t>(bits);
        if (!std::isnan(static_cast<float>(brain))) {
            ASSERT_EQ(BFloat16(static_cast<float>(brain)).bits, bits);
        }
    }
}

TEST(HalfTypes, RoundToNearestEven) {
    for (std::uint64_t bits = 0; bits < 0x7F800000U; bits += 5003) {
        const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
        const auto wide = static_cast<double>(value);
        ASSERT_EQ(static_cast<double>(static_cast<float>(Float16(value))),
                  oracle::round_to(wide, oracle::Arithmetic::f16))
            << value;
        ASSERT_EQ(static_cast<double>(static_cast<float>(BFloat16(-value))),
                  oracle::round_to(-wide, oracle::Arithmetic::bf16))
            << value;
    }
    EXPECT_EQ(static_cast<float>(Float16(2049.0F)), 2048.0F);
    EXPECT_EQ(static_cast<float>(Float16(2051.0F)), 2052.0F);
    EXPECT_EQ(static_cast<float>(Float16(65520.0F)), std::numeric_limits<float>::infinity());
    EXPECT_EQ(static_cast<float>(Float16(65519.0F)), 65504.0F);
}

}  // namespace
}  // namespace qkv
