// What Rope refuses: options, tables, views and positions that make no sense, before anything is written.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "qkv/rope.hpp"
#include "support/expect_error.hpp"

namespace qkv {
namespace {

TEST(RopeErrors, OptionsOutOfTheirRange) {
    const auto refused = [](const RopeOptions& options, std::int64_t head_dim, const char* part) {
        SCOPED_TRACE(part);
        EXPECT_ERROR(Rope(options, head_dim), ErrorCode::invalid_argument, part);
    };
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    refused({}, 7, "rotary_dim is 7");
    refused({}, 0, "rotary_dim is 0");
    refused({}, -2, "rotary_dim is -2");
    refused({.rotary_dim = 3}, 8, "rotary_dim is 3 and head_dim 8; expected an even number");
    refused({.rotary_dim = 10}, 8, "rotary_dim is 10");
    refused({.rotary_dim = -2}, 8, "rotary_dim is -2");
    for (const double base : {1.0, 0.0, -5.0, kNan, kInfinity}) {
        refused({.base = base}, 8, "base is");
    }
    for (const double factor : {0.5, 0.0, -1.0, kNan, kInfinity}) {
        refused({.scaling = RopeLinear{factor}}, 8, "scaling.factor is");
        refused({.scaling = RopeNtk{factor}}, 8, "scaling.factor is");
        refused({.scaling = RopeDynamicNtk{factor, 8}}, 8, "scaling.factor is");
        refused({.scaling = RopeYarn{.factor = factor, .original_context = 8}}, 8, "scaling.factor is");
        refused({.scaling = RopeLlama3{.factor = factor}}, 8, "scaling.factor is");
    }
    refused({.scaling = RopeNtk{2.0}}, 2, "expected at least 4");
    refused({.scaling = RopeDynamicNtk{2.0, 8}}, 2, "expected at least 4");
    refused({.scaling = RopeDynamicNtk{2.0, 0}}, 8, "original_context is 0");
    refused({.scaling = RopeYarn{.factor = 2.0}}, 8, "original_context is 0");
    refused({.scaling = RopeYarn{.original_context = 8, .beta_fast = 1.0}}, 8, "expected 0 < beta_slow < beta_fast");
    refused({.scaling = RopeYarn{.original_context = 8, .beta_slow = 0.0}}, 8, "beta_slow is 0");
    refused({.scaling = RopeYarn{.original_context = 8, .attention_factor = kNan}}, 8, "attention_factor is");
    refused({.scaling = RopeYarn{.original_context = 8, .mscale = kInfinity}}, 8, "mscale is inf");
    refused({.scaling = RopeLlama3{.original_context = -1}}, 8, "original_context is -1");
    refused({.scaling = RopeLlama3{.low_freq_factor = 4.0}}, 8, "expected 0 < low_freq_factor < high_freq_factor");
}

TEST(RopeErrors, ViewsAndPositions) {
    const Rope rope({}, 4);
    std::vector<float> x(64, 1.0F);
    std::vector<float> out(64, 7.0F);
    const TensorView in = view(x.data(), {2, 1, 3, 4});
    const TensorView to = view(out.data(), {2, 1, 3, 4});
    const auto refused = [&](const ConstTensorView& from, const TensorView& into, const RopePositions& positions,
                             ErrorCode code, const std::string& part) {
        SCOPED_TRACE(part);
        EXPECT_ERROR(rope.apply(from, into, positions), code, part);
        EXPECT_EQ(out, std::vector<float>(64, 7.0F)) << "something was written";
    };
    refused(view(x.data(), {2, 1, 3, 6}), to, {}, ErrorCode::shape_mismatch, "x has shape [2, 1, 3, 6]; expected");
    refused(in, view(out.data(), {2, 1, 4, 4}), {}, ErrorCode::shape_mismatch, "out has shape [2, 1, 4, 4]");
    refused({nullptr, DType::f32, in.shape, in.strides}, to, {}, ErrorCode::invalid_argument, "x has shape");
    refused({x.data(), DType::boolean, in.shape, in.strides}, to, {}, ErrorCode::unsupported, "x has type bool");
    refused(view(out.data() + 4, {2, 1, 3, 4}), to, {}, ErrorCode::invalid_argument, "out overlaps x");
    refused(in, view(out.data(), {2, 1, 3, 4}, {0, 4, 4, 1}), {}, ErrorCode::invalid_argument, "out overlaps itself");
    TensorView elsewhere = to;
    elsewhere.device = static_cast<Device>(3);  // NOLINT(clang-analyzer-optin.core.EnumCastOutOfRange): what is tried
    refused(in, elsewhere, {}, ErrorCode::unsupported, "out is on device 3");
    EXPECT_ERROR(rope.apply_backward(view(x.data(), {2, 1, 3, 6}), to), ErrorCode::shape_mismatch, "d_out has shape");
    EXPECT_ERROR(rope.apply_backward(in, view(out.data(), {2, 1, 4, 4})), ErrorCode::shape_mismatch, "d_x has shape");

    constexpr std::int64_t kEnd = std::int64_t{1} << 32;
    refused(in, to, {.start = -1}, ErrorCode::out_of_range, "positions.start is -1");
    refused(in, to, {.start = kEnd - 2}, ErrorCode::out_of_range, "for 3 tokens; expected 0 to 4294967295");
    refused(in, to, {.start = std::numeric_limits<std::int64_t>::max()}, ErrorCode::out_of_range, "positions.start");
    refused(in, to, {.length = -1}, ErrorCode::out_of_range, "positions.length is -1");
    const std::vector<std::int64_t> five(5);
    refused(in, to, {.each = five}, ErrorCode::shape_mismatch, "positions.each has 5 entries; expected 6");
    const std::vector<std::int64_t> negative{0, 1, 2, 3, -4, 5};
    refused(in, to, {.each = negative}, ErrorCode::out_of_range, "positions.each[4] is -4");
    const std::vector<std::int64_t> far{0, 1, 2, 3, 4, kEnd};
    refused(in, to, {.each = far}, ErrorCode::out_of_range, "positions.each[5] is 4294967296");

    rope.apply(in, to, {.start = kEnd - 3});  // the last positions there are
    EXPECT_NE(out[0], 7.0F);
    rope.apply(view(x.data(), {2, 1, 0, 4}), view(x.data(), {2, 1, 0, 4}));  // no tokens: nothing to do
}

TEST(RopeErrors, Tables) {
    std::vector<float> table(64, 0.5F);
    const auto rows = [&](const Shape4& shape) { return view(table.data(), shape); };
    const auto make = [](const ConstTensorView& cos, const ConstTensorView& sin, std::int64_t head_dim) {
        return Rope::from_tables(cos, sin, head_dim, RopePairing::half_split);
    };
    EXPECT_ERROR(make(rows({1, 1, 5, 4}), rows({1, 1, 5, 4}), 6), ErrorCode::invalid_argument, "rotary_dim is 8");
    EXPECT_ERROR(make(rows({1, 1, 5, 0}), rows({1, 1, 5, 0}), 6), ErrorCode::invalid_argument, "rotary_dim is 0");
    EXPECT_ERROR(make(rows({1, 1, 5, 4}), rows({1, 1, 4, 4}), 8), ErrorCode::shape_mismatch, "sin has shape");
    EXPECT_ERROR(make(rows({2, 1, 5, 4}), rows({2, 1, 5, 4}), 8), ErrorCode::shape_mismatch, "cos has shape");
    EXPECT_ERROR(make({nullptr, DType::f32, {1, 1, 5, 4}, {20, 20, 4, 1}}, rows({1, 1, 5, 4}), 8),
                 ErrorCode::invalid_argument, "cos has shape");
    const Rope rope = make(rows({1, 1, 5, 4}), rows({1, 1, 5, 4}), 8);
    std::vector<float> x(64);
    const TensorView in = view(x.data(), {1, 1, 3, 8});
    rope.apply(in, in, {.start = 2});
    EXPECT_ERROR(rope.apply(in, in, {.start = 3}), ErrorCode::out_of_range, "the table has rows for 5 positions");
    const std::vector<std::int64_t> each{0, 5, 1};
    EXPECT_ERROR(rope.apply(in, in, {.each = each}), ErrorCode::out_of_range, "positions.each[1] is 5");
}

}  // namespace
}  // namespace qkv
