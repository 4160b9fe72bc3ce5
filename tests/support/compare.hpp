// The error rule: infinities and NaN in the same places, and no error beyond twice that of a plain computation in the
// same precision, plus a floor of two roundings of the largest size.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "qkv/types.hpp"

namespace support {

[[nodiscard]] inline double epsilon(qkv::DType dtype) {
    switch (dtype) {
        case qkv::DType::bf16:
            return 0x1p-8;
        case qkv::DType::f16:
            return 0x1p-11;
        case qkv::DType::f64:
            return 0x1p-53;
        default:
            return 0x1p-24;
    }
}

[[nodiscard]] inline double max_error(const std::vector<double>& got, const std::vector<double>& expected) {
    double error = 0.0;
    for (std::size_t at = 0; at < expected.size(); ++at) {
        if (std::isfinite(expected[at])) {
            error = std::max(error, std::fabs(got[at] - expected[at]));
        }
    }
    return error;
}

/// `dtype` is the precision at work. The floor is two roundings in it of the largest of `sizes`: what the values would
/// be if nothing cancelled, or the values themselves.
inline void expect_rule(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
                        const std::vector<double>& plain, qkv::DType dtype, const std::vector<double>& sizes) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (std::size_t at = 0; at < expected.size(); ++at) {
        if (!std::isfinite(expected[at])) {
            ASSERT_TRUE(std::isnan(expected[at]) ? std::isnan(got[at]) : got[at] == expected[at])
                << what << "[" << at << "] is " << got[at] << ", expected " << expected[at];
        } else {
            ASSERT_TRUE(std::isfinite(got[at]))
                << what << "[" << at << "] is " << got[at] << ", expected " << expected[at];
        }
    }
    double largest = 0.0;
    for (const double size : sizes) {
        largest = std::isfinite(size) ? std::max(largest, std::fabs(size)) : largest;
    }
    const double floor = 2.0 * epsilon(dtype) * largest;
    const double allowed = 2.0 * max_error(plain, expected) + floor;
    EXPECT_LE(max_error(got, expected), allowed)
        << what << ": plain error " << max_error(plain, expected) << ", largest size " << largest;
}

}  // namespace support
