// PyTorch's float64 answers to small problems (tests/golden/generate_attention.py).
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "support/attention_file.hpp"

namespace qkv {
namespace {

TEST(AttentionGolden, AgreesWithPyTorch) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(QKV_GOLDEN_DIR "/attention.bin", "rb"),
                                                               &std::fclose);
    ASSERT_NE(file, nullptr);
    int problems = 0;
    for (support::Answers got; !(got = support::answer_problem(file.get())).tensors.empty(); ++problems) {
        // float32 by the tolerance that PyTorch's own tests have for its fused attention.
        const double absolute = got.dtype == DType::f64 ? 1e-12 : 1e-5;
        const double relative = got.dtype == DType::f64 ? 1e-12 : 5e-6;
        for (const auto& [name, values] : got.tensors) {
            const auto expected = support::take_from(file.get(), static_cast<std::int64_t>(values.size()));
            for (std::size_t at = 0; at < values.size(); ++at) {
                if (!std::isfinite(expected[at])) {
                    ASSERT_EQ(values[at], expected[at]) << problems << ' ' << name << at;
                } else {
                    ASSERT_NEAR(values[at], expected[at], absolute + relative * std::fabs(expected[at]))
                        << "problem " << problems << ' ' << name << '[' << at << ']';
                }
            }
        }
    }
    EXPECT_EQ(problems, 24);
}

}  // namespace
}  // namespace qkv
