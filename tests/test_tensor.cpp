#include <gtest/gtest.h>

#include <limits>

#include "qkv/tensor.hpp"

namespace qkv {
namespace {

constexpr std::int64_t kHuge = std::int64_t{1} << 32;

TEST(Tensor, KeepsRowMajorOrder) {
    Tensor tensor({2, 3}, {1, 2, 3, 4, 5, 6});
    EXPECT_EQ(tensor(1, 0), 4.0F);
    EXPECT_EQ(tensor.row(1)[2], 6.0F);
    EXPECT_EQ(tensor.size(-1), 3);
    EXPECT_EQ(tensor.transposed(), Tensor({3, 2}, {1, 4, 2, 5, 3, 6}));
    EXPECT_EQ(tensor.reshaped({3, 2})(1, 0), 3.0F);
}

TEST(Tensor, RankZeroHoldsOneElement) { EXPECT_EQ(Tensor(Shape{}).numel(), 1); }

TEST(Tensor, ShapeProductIsChecked) {
    EXPECT_EQ(element_count({kHuge, kHuge, 0}), 0);
    EXPECT_EQ(element_count({0, kHuge, kHuge}), 0);
    EXPECT_THROW((void)element_count({kHuge, kHuge}), Error);
    EXPECT_THROW((void)element_count({2, -1}), Error);
    EXPECT_THROW(Tensor({std::numeric_limits<std::int64_t>::max()}), Error);
}

TEST(Tensor, ErrorsNameTheShapes) {
    try {
        const Tensor tensor({2, 3}, {1, 2});
        FAIL() << "2 values were accepted for a shape of 6";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::shape_mismatch);
        EXPECT_STREQ(error.what(), "tensor of shape [2, 3] needs 6 values, got 2");
    }
    EXPECT_THROW((void)Tensor({2, 3}).size(2), Error);
    EXPECT_THROW((void)Tensor({2, 3}).reshaped({7}), Error);
    EXPECT_THROW((void)Tensor({6}).transposed(), Error);
}

}  // namespace
}  // namespace qkv
