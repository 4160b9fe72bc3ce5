#include <gtest/gtest.h>

#if defined(__linux__)
#include <sys/resource.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

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

/// Freed memory waits for the next tensor of its size; who asked for zeros gets zeros all the same.
TEST(Tensor, IsZeroInMemoryThatWasUsedBefore) {
    for (const std::int64_t count : {5, 100, 20'000, 300'000, 3'000'000}) {
        for (int round = 0; round < 3; ++round) {
            Tensor used = Tensor::unwritten({count});
            std::ranges::fill(used.values(), 7.0F);
            used = Tensor();
            const Tensor zeros({count});
            EXPECT_EQ(std::ranges::count(zeros.values(), 0.0F), count);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(zeros.data()) % 64, 0U) << "products read whole cache lines";
        }
    }
}

/// Blocks go from thread to thread, and more of them than wait.
TEST(Tensor, NeverSharesMemory) {
    std::vector<std::thread> threads;
    threads.reserve(4);
    std::atomic<int> wrong{0};
    for (int thread = 0; thread < 4; ++thread) {
        threads.emplace_back([thread, &wrong] {
            for (int round = 0; round < 30; ++round) {
                std::vector<Tensor> held;
                held.reserve(90);
                for (int index = 0; index < 90; ++index) {
                    held.push_back(Tensor::unwritten({16'384 + index % 3}));
                    held.back()(0) = static_cast<float>(thread * 1000 + index);
                }
                for (int index = 0; index < 90; ++index) {
                    wrong +=
                        held[static_cast<std::size_t>(index)](0) == static_cast<float>(thread * 1000 + index) ? 0 : 1;
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(wrong, 0);
}

#if defined(__linux__)
rlim_t mapped_bytes() {
    rlim_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    return pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
}

/// What freed tensors left waiting is given back before a tensor is refused.
TEST(Tensor, IsNotRefusedForMemoryThatLiesIdle) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers need more address space than this test leaves";
#endif
    constexpr std::int64_t kMiB = std::int64_t{1} << 18;  // in floats
    const auto refuse_more = [](rlim_t bytes) {
        const rlimit addresses{mapped_bytes() + bytes, mapped_bytes() + bytes};
        return ::setrlimit(RLIMIT_AS, &addresses) == 0;
    };
    const auto child = [&refuse_more] {
        for (std::vector<Tensor> freed; freed.size() < 4;) {
            freed.push_back(Tensor::unwritten({16 * kMiB}));
        }
        if (!refuse_more(rlim_t{20} << 20U)) {
            std::exit(2);
        }
        const Tensor needs_the_idle = Tensor::unwritten({40 * kMiB});
        std::exit(0);
    };
    EXPECT_EXIT(child(), testing::ExitedWithCode(0), "");
}

TEST(Tensor, IdleMemoryIsGivenBackOnRequest) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "nothing lies idle under AddressSanitizer";
#endif
    const auto child = [] {
        const rlim_t before = mapped_bytes();
        for (std::vector<Tensor> freed; freed.size() < 4;) {
            freed.push_back(Tensor::unwritten({std::int64_t{4} << 20U}));
        }
        constexpr rlim_t kIdle = rlim_t{64} << 20U;
        if (mapped_bytes() < before + kIdle) {
            std::exit(2);
        }
        release_idle_memory();
        std::exit(mapped_bytes() < before + kIdle / 4 ? 0 : 3);
    };
    EXPECT_EXIT(child(), testing::ExitedWithCode(0), "");
}
#endif

}  // namespace
}  // namespace qkv
