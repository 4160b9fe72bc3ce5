// Against digests of PyTorch's own draws (golden/random_digests.csv), and against numbers that PyTorch prints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "qkv/random.hpp"

namespace qkv {
namespace {

using testing::ElementsAre;
using testing::FloatNear;
using testing::HasSubstr;
using testing::Pointwise;

struct Golden {
    std::string distribution;
    std::string dtype;
    std::uint64_t seed = 0;
    std::int64_t count = 0;
    std::int64_t repeat = 0;
    double a = 0;
    double b = 0;
    std::string digest;
    std::string first;
};

std::vector<Golden> read_goldens() {
    std::ifstream file(QKV_GOLDEN_DIR "/random_digests.csv");
    std::vector<Golden> goldens;
    std::string line;
    std::getline(file, line);  // what made it
    std::getline(file, line);  // the names of the columns
    while (std::getline(file, line)) {
        std::vector<std::string> cells;
        std::istringstream row(line);
        for (std::string cell; std::getline(row, cell, ',');) {
            cells.push_back(cell);
        }
        goldens.push_back({.distribution = cells.at(0),
                           .dtype = cells.at(1),
                           .seed = std::stoull(cells.at(2)),
                           .count = std::stoll(cells.at(3)),
                           .repeat = std::stoll(cells.at(4)),
                           .a = std::stod(cells.at(5)),
                           .b = std::stod(cells.at(6)),
                           .digest = cells.at(7),
                           .first = cells.at(8)});
    }
    return goldens;
}

std::string hex(std::uint64_t value, std::size_t bytes) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text(2 * bytes, '0');
    for (std::size_t i = text.size(); i-- > 0; value >>= 4U) {
        text[i] = digits[value & 15U];
    }
    return text;
}

template <class T>
std::uint64_t bits_of(T value) {
    if constexpr (sizeof(T) == sizeof(std::uint64_t)) {
        return std::bit_cast<std::uint64_t>(value);
    } else {
        return std::bit_cast<std::uint32_t>(value);
    }
}

/// FNV-1a over the little-endian bytes.
template <class T>
std::string digest(const std::vector<T>& values) {
    std::uint64_t sum = 0xCBF29CE484222325;
    for (const T value : values) {
        const std::uint64_t bits = bits_of(value);
        for (std::size_t byte = 0; byte < sizeof(T); ++byte) {
            sum = (sum ^ (bits >> (8 * byte) & 0xFFU)) * 0x100000001B3;
        }
    }
    return hex(sum, sizeof sum);
}

template <class T>
std::string first_bits(const std::vector<T>& values) {
    std::string text;
    for (std::size_t i = 0; i < std::min<std::size_t>(4, values.size()); ++i) {
        text.append(i == 0 ? "" : " ").append(hex(bits_of(values[i]), sizeof(T)));
    }
    return text;
}

template <class T>
void append(std::vector<T>& values, const BasicTensor<T>& tensor) {
    values.insert(values.end(), tensor.values().begin(), tensor.values().end());
}

template <class T>
void append_interleaved(std::vector<T>& values, Generator& generator) {
    for (std::int64_t count = 1; count <= 70; ++count) {
        append(values, generator.randn<T>({count}));
        append(values, generator.rand<T>({count % 5}));
        BasicTensor<T> coins({count % 3});
        generator.bernoulli_(coins.values(), 0.25);
        append(values, coins);
        BasicTensor<T> normals({count % 7 + 1});
        generator.normal_(normals.values(), -2.5, 0.3);
        append(values, normals);
    }
}

template <class T>
void append_draw(std::vector<T>& values, Generator& generator, const Golden& golden) {
    if (golden.distribution == "interleaved") {
        return append_interleaved(values, generator);
    }
    BasicTensor<T> tensor({golden.count});
    if (golden.distribution == "rand") {
        tensor = generator.rand<T>({golden.count});
    } else if (golden.distribution == "randn") {
        tensor = generator.randn<T>({golden.count});
    } else if (golden.distribution == "uniform") {
        generator.uniform_(tensor.values(), golden.a, golden.b);
    } else if (golden.distribution == "normal") {
        generator.normal_(tensor.values(), golden.a, golden.b);
    } else if (golden.distribution == "bernoulli") {
        generator.bernoulli_(tensor.values(), golden.a);
    } else if (golden.distribution == "dropout") {
        generator.bernoulli_(tensor.values(), 1 - golden.a);
        for (T& value : tensor.values()) {
            value /= static_cast<T>(1 - golden.a);
        }
    } else {
        FAIL() << "no such distribution: " << golden.distribution;
    }
    append(values, tensor);
}

template <class T>
void expect_equals(const std::vector<T>& values, const Golden& golden) {
    EXPECT_EQ(first_bits(values), golden.first);
    EXPECT_EQ(digest(values), golden.digest);
}

template <class T>
void check(const Golden& golden) {
    Generator generator(golden.seed);
    std::vector<T> values;
    for (std::int64_t draw = 0; draw < golden.repeat; ++draw) {
        append_draw(values, generator, golden);
    }
    expect_equals(values, golden);
}

void check_words(const Golden& golden) {
    Generator generator(golden.seed);
    std::vector<std::uint32_t> words(static_cast<std::size_t>(golden.count));
    for (std::uint32_t& word : words) {
        word = generator.random();
    }
    expect_equals(words, golden);
    Generator again(golden.seed);
    for (std::size_t i = 0; i + 1 < words.size(); i += 2) {
        ASSERT_EQ(again.random64(), std::uint64_t{words[i]} << 32U | words[i + 1]);
    }
}

class AgainstPyTorch : public testing::TestWithParam<std::string> {};

TEST_P(AgainstPyTorch, EveryBitIsEqual) {
    std::int64_t compared = 0;
    for (const Golden& golden : read_goldens()) {
        if (golden.distribution != GetParam()) {
            continue;
        }
        SCOPED_TRACE(testing::Message() << golden.distribution << " " << golden.dtype << " seed " << golden.seed << ", "
                                        << golden.repeat << " draws of " << golden.count << ", a " << golden.a << ", b "
                                        << golden.b);
        if (golden.dtype == "uint32") {
            check_words(golden);
        } else if (golden.dtype == "float32") {
            check<float>(golden);
        } else {
            check<double>(golden);
        }
        compared += std::max<std::int64_t>(golden.count, 1) * golden.repeat;
    }
    EXPECT_GE(compared, GetParam() == "interleaved" ? 12 : 500'000);  // each of those is 2,975 values
}

INSTANTIATE_TEST_SUITE_P(Distributions, AgainstPyTorch,
                         testing::Values("words", "rand", "randn", "uniform", "normal", "bernoulli", "dropout",
                                         "interleaved"),
                         [](const auto& test) { return test.param; });

TEST(Generator, PrintsWhatPyTorchPrints) {
    const Tensor uniform = Generator(123).rand({2, 3});
    EXPECT_THAT(uniform.values(), Pointwise(FloatNear(5e-5F), {0.2961F, 0.5166F, 0.2517F, 0.6886F, 0.0740F, 0.8665F}));
    EXPECT_EQ(uniform.shape(), (Shape{2, 3}));
    const Tensor normal = Generator(123).randn({3});
    EXPECT_THAT(normal.values(), Pointwise(FloatNear(5e-5F), {-0.1115F, 0.1204F, -0.3696F}));
}

TEST(Generator, DropoutOfOnesStartsAsPublished) {
    Generator generator(123);
    Tensor kept({6, 6});
    generator.bernoulli_(kept.values(), 0.5);
    for (float& value : kept.values()) {
        value /= 0.5F;
    }
    EXPECT_THAT(kept.row(0), ElementsAre(2, 2, 0, 2, 2, 0));
}

TEST(Generator, SeedsByTheLowWordAndRemembersTheWhole) {
    const std::uint64_t wide = (std::uint64_t{1} << 32U) + 5;
    EXPECT_EQ(Generator(wide).rand({9}), Generator(5).rand({9}));
    EXPECT_EQ(Generator(wide).seed(), wide);
    EXPECT_EQ(Generator().seed(), 67280421310721U);
    EXPECT_NE(Generator(6).rand({9}), Generator(5).rand({9}));
}

TEST(Generator, ReseedingForgetsTheCachedNormal) {
    Generator generator(7);
    const Tensor first = generator.randn({1});
    generator.manual_seed(7);
    EXPECT_EQ(generator.randn({1}), first);
}

TEST(Generator, CopyContinuesTheSameStream) {
    Generator generator(7);
    (void)generator.randn({700});
    (void)generator.randn({1});  // leaves half a pair
    Generator copy = generator;
    const Tensor next = generator.randn({5});
    EXPECT_EQ(copy.randn({5}), next);
    EXPECT_EQ(copy.rand({700}), generator.rand({700}));
    EXPECT_EQ(copy.seed(), 7U);
}

TEST(Generator, NothingDrawnFromEmptyTensors) {
    Generator generator(1);
    (void)generator.rand({0});
    (void)generator.randn({0, 5});
    EXPECT_EQ(generator.rand({1}), Generator(1).rand({1}));
}

TEST(Generator, CertaintiesStillDraw) {
    for (const double probability : {0.0, 1.0}) {
        Generator generator(1);
        Tensor coins({3});
        generator.bernoulli_(coins.values(), probability);
        EXPECT_THAT(coins.values(), testing::Each(static_cast<float>(probability)));
        Generator expected(1);
        for (int i = 0; i < 6; ++i) {
            (void)expected.random();
        }
        EXPECT_EQ(generator.random(), expected.random());
    }
}

/// Runs `draw` on a fresh generator and gives its complaint; the stream must not have moved.
template <class Draw>
std::string complaint(Draw draw) {
    Generator generator(3);
    std::string text = "no complaint";
    try {
        draw(generator);
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
        text = error.what();
    }
    EXPECT_EQ(generator.random(), Generator(3).random());
    return text;
}

TEST(Generator, BadArgumentsAreNamed) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const auto uniform = [](double from, double to) {
        return complaint([=](Generator& generator) { generator.uniform_<float>(Tensor({2}).values(), from, to); });
    };
    EXPECT_EQ(uniform(1, -2.5),
              "uniform_: range [1, -2.5); expected from <= to with from, to and to - from finite in float32");
    EXPECT_THAT(uniform(kNan, 1), HasSubstr("nan"));
    EXPECT_THAT(uniform(0, kInfinity), HasSubstr("inf"));
    EXPECT_THAT(uniform(0, 1e39), HasSubstr("1e+39"));
    EXPECT_THAT(uniform(-3e38, 3e38), HasSubstr("3e+38"));

    const auto normal = [](double mean, double std) {
        return complaint([=](Generator& generator) { generator.normal_<double>(Tensor64({2}).values(), mean, std); });
    };
    EXPECT_EQ(normal(0, -1), "normal_: mean is 0 and std -1; expected both finite in float64 and std >= 0");
    EXPECT_THAT(normal(kNan, 1), HasSubstr("nan"));
    EXPECT_THAT(normal(0, kInfinity), HasSubstr("inf"));

    const auto bernoulli = [](double probability) {
        return complaint([=](Generator& generator) { generator.bernoulli_<float>(Tensor({2}).values(), probability); });
    };
    EXPECT_EQ(bernoulli(1.5), "bernoulli_: probability is 1.5; expected 0 to 1");
    EXPECT_THAT(bernoulli(-0.1), HasSubstr("-0.1"));
    EXPECT_THAT(bernoulli(kNan), HasSubstr("nan"));
}

}  // namespace
}  // namespace qkv
