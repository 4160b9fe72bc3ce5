// Products of matrices against sums in long double, under every instruction set of the machine, in memory that faults
// when it is touched outside.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "nn/matrix_product.hpp"
#include "support/guard.hpp"
#include "support/instruction_sets.hpp"

namespace qkv::nn {
namespace {

using support::Guarded;

/// A matrix in guarded memory, stored as it is or transposed.
template <class T>
struct Matrix {
    Matrix(std::int64_t row_count, std::int64_t column_count, bool is_transposed, std::mt19937_64& random,
           Guarded::Side side)
        : rows(row_count),
          columns(column_count),
          transposed(is_transposed),
          memory(static_cast<std::size_t>(rows * columns) * sizeof(T), side),
          data(reinterpret_cast<T*>(memory.data())) {
        std::normal_distribution<double> normal;
        for (std::int64_t i = 0; i < rows * columns; ++i) {
            data[i] = static_cast<T>(normal(random));
        }
    }
    [[nodiscard]] Strided<T> strided() const {
        return transposed ? row_major<T>(data, rows).transposed() : row_major<T>(data, columns);
    }
    [[nodiscard]] T& at(std::int64_t row, std::int64_t column) const {
        return transposed ? data[column * rows + row] : data[row * columns + column];
    }
    std::int64_t rows, columns;
    bool transposed;
    Guarded memory;
    T* data;
};

struct Shape3 {
    std::int64_t m, n, k;
};

enum class Form { rows_by_rows, rows_by_columns, columns_by_rows };  // x Wᵀ, d_y W, d_yᵀ x

template <class T>
struct Problem {
    Problem(const Shape3& sizes, Form form, std::uint64_t seed, Guarded::Side side = Guarded::Side::end)
        : shape(sizes),
          random(seed),
          a(shape.m, shape.k, form == Form::columns_by_rows, random, side),
          b(shape.k, shape.n, form == Form::rows_by_rows, random, side),
          c(shape.m, shape.n, false, random, side),
          bias(1, shape.n, false, random, side) {}

    [[nodiscard]] Product<T> product() const {
        return {.m = shape.m, .n = shape.n, .k = shape.k, .a = a.strided(), .b = b.strided(), .c = c.data};
    }
    [[nodiscard]] std::vector<T> result() const { return {c.data, c.data + shape.m * shape.n}; }

    Shape3 shape;
    std::mt19937_64 random;
    Matrix<T> a, b, c, bias;
};

template <class T>
bool same_bits(const std::vector<T>& one, const std::vector<T>& other) {
    return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size() * sizeof(T)) == 0;
}

/// c ← [c +] a b [+ bias] within what rounding may do: a chain of k terms rounds each term k times at most, here a
/// chunk and the number of chunks; without fused multiply-adds the product rounds once more.
template <class T>
void check_product(const Shape3& shape, Form form, bool add, bool with_bias, Sums sums, const Runtime& runtime,
                   Guarded::Side side) {
    const Problem<T> problem(shape, form, static_cast<std::uint64_t>(shape.m * 10007 + shape.n * 101 + shape.k), side);
    const std::vector<T> before = problem.result();
    Product<T> product = problem.product();
    product.add = add;
    product.bias = with_bias ? problem.bias.data : nullptr;
    product.sums = sums;
    multiply(product, runtime);

    const auto unit = static_cast<long double>(std::numeric_limits<T>::epsilon()) / 2;
    const bool exact = sums == Sums::in_double && sizeof(T) == 4;
    const std::int64_t chain = sums == Sums::short_chains ? kShortChain : kChunk;
    const std::int64_t longest_chain = std::min(shape.k, chain) + shape.k / chain;
    const auto depth = static_cast<long double>(longest_chain);
    for (std::int64_t row = 0; row < shape.m; ++row) {
        for (std::int64_t column = 0; column < shape.n; ++column) {
            long double sum = 0;
            long double sizes = 0;
            for (std::int64_t i = 0; i < shape.k; ++i) {
                const long double term = static_cast<long double>(problem.a.at(row, i)) * problem.b.at(i, column);
                sum += term;
                sizes += std::fabs(term);
            }
            const long double c = add ? before[static_cast<std::size_t>(row * shape.n + column)] : T(0);
            const long double bias = with_bias ? problem.bias.data[column] : T(0);
            const long double sum_error = exact ? unit * std::fabs(sum) + 1e-14L * sizes : (depth + 1) * unit * sizes;
            const long double later = (std::fabs(c) + std::fabs(sum) + std::fabs(bias)) * 3 * unit;
            const long double bound = sum_error + (add || with_bias ? later : 0.0L);
            const T found = problem.c.at(row, column);
            ASSERT_LE(std::fabs(found - (c + sum + bias)), bound)
                << shape.m << " × " << shape.k << " × " << shape.n << ", form " << static_cast<int>(form) << ", at "
                << row << ' ' << column;
        }
    }
}

class MatrixProduct : public testing::TestWithParam<InstructionSet> {};
INSTANTIATE_TEST_SUITE_P(Sets, MatrixProduct, testing::ValuesIn(support::available_sets()),
                         [](const auto& set) { return std::string(name(set.param)); });

TEST_P(MatrixProduct, IsTheProductForAnySizes) {
    const Runtime runtime(2, GetParam());
    std::mt19937_64 random(1);
    std::uniform_int_distribution<std::int64_t> size(1, 67);
    for (int number = 0; number < 240; ++number) {
        const Shape3 shape{size(random), size(random), size(random)};
        const auto form = static_cast<Form>(number % 3);
        const bool add = number % 2 == 1;
        const bool bias = number % 4 < 2;
        const auto side = number % 5 < 3 ? Guarded::Side::end : Guarded::Side::begin;
        const auto sums = static_cast<Sums>(number / 3 % 3);
        ASSERT_NO_FATAL_FAILURE(check_product<float>(shape, form, add, bias, sums, runtime, side));
        ASSERT_NO_FATAL_FAILURE(check_product<double>(shape, form, add, bias, sums, runtime, side));
    }
}

TEST_P(MatrixProduct, IsTheProductOverManyChunksAndBlocks) {
    const Runtime runtime(3, GetParam());
    for (const Form form : {Form::rows_by_rows, Form::rows_by_columns, Form::columns_by_rows}) {
        for (const Shape3& shape : {Shape3{930, 35, 40}, Shape3{3, 130, kChunk}, Shape3{17, 33, 2 * kChunk + 1},
                                    Shape3{1, 200, 3 * kChunk - 1}, Shape3{1800, 3, 2}}) {
            ASSERT_NO_FATAL_FAILURE(
                check_product<float>(shape, form, true, true, Sums::long_chains, runtime, Guarded::Side::end));
            ASSERT_NO_FATAL_FAILURE(
                check_product<double>(shape, form, false, true, Sums::long_chains, runtime, Guarded::Side::end));
        }
    }
}

TEST_P(MatrixProduct, OfNothingIsTheBias) {
    const Runtime runtime(1, GetParam());
    check_product<float>({3, 40, 0}, Form::rows_by_rows, false, true, Sums::long_chains, runtime, Guarded::Side::end);
    check_product<float>({3, 40, 0}, Form::rows_by_rows, true, false, Sums::short_chains, runtime, Guarded::Side::end);
    check_product<float>({0, 40, 3}, Form::rows_by_rows, true, false, Sums::long_chains, runtime, Guarded::Side::end);
    check_product<float>({3, 0, 40}, Form::rows_by_rows, true, false, Sums::short_chains, runtime, Guarded::Side::end);
}

TEST_P(MatrixProduct, HasTheSameBitsForAnyThreads) {
    for (const Form form : {Form::rows_by_rows, Form::rows_by_columns, Form::columns_by_rows}) {
        for (const Shape3& shape : {Shape3{400, 150, 300}, Shape3{5, 700, 300}, Shape3{1900, 20, 64}}) {
            std::optional<std::vector<float>> first;
            for (std::int64_t threads = 1; threads <= 4; ++threads) {
                const Problem<float> problem(shape, form, 5);
                const Runtime runtime(threads, GetParam());
                multiply(problem.product(), runtime);
                if (!first) {
                    first = problem.result();
                }
                ASSERT_TRUE(same_bits(*first, problem.result())) << shape.m << ", " << threads << " threads";
            }
        }
    }
}

/// The first group goes to c, the others to room of their own, whoever computes them.
TEST_P(MatrixProduct, InGroupsHasTheSameBitsForAnyThreads) {
    for (const std::int64_t terms : {0, 500, 512, 513, 1500}) {
        for (const bool add : {false, true}) {
            std::optional<std::vector<float>> first;
            for (std::int64_t threads = 1; threads <= 4; ++threads) {
                const Problem<float> problem({70, 45, terms}, Form::columns_by_rows, 5);
                Product<float> product = problem.product();
                product.bias = problem.bias.data;
                product.add = add;
                const std::vector<float> before = problem.result();
                std::vector<float> plain = before;
                Product<float> whole = product;
                whole.c = plain.data();
                multiply(whole, Runtime(1, GetParam()));
                product.in_groups = true;
                multiply(product, Runtime(threads, GetParam()));
                const std::vector<float> result = problem.result();
                for (std::size_t at = 0; at < result.size(); ++at) {
                    ASSERT_NEAR(result[at], plain[at], 2e-4) << terms << " terms, " << add;
                }
                if (!first) {
                    first = result;
                }
                ASSERT_TRUE(same_bits(*first, result)) << terms << " terms, " << threads << " threads";
            }
        }
    }
}

/// A row on its own, and a few, have the bits that they have among all.
TEST_P(MatrixProduct, OfARowHasTheSameBitsInAnyBatch) {
    const Runtime runtime(2, GetParam());
    for (const auto& [sums, terms] : {std::pair{Sums::long_chains, std::int64_t{600}},
                                      {Sums::long_chains, 200},
                                      {Sums::short_chains, 600},
                                      {Sums::short_chains, 70},
                                      {Sums::in_double, 600}}) {
        const Problem<float> problem({1000, 77, terms}, Form::rows_by_rows, 6);
        Product<float> whole = problem.product();
        whole.bias = problem.bias.data;
        whole.sums = sums;
        multiply(whole, runtime);
        for (const std::int64_t rows : {1, 2, 3, 7, 8, 13, 15, 100}) {
            for (const std::int64_t from : {std::int64_t{0}, std::int64_t{501}, 1000 - rows}) {
                std::vector<float> alone(static_cast<std::size_t>(rows * 77));
                Product<float> part = whole;
                part.m = rows;
                part.a = whole.a.from(from, 0);
                part.c = alone.data();
                multiply(part, Runtime(1, GetParam()));
                const float* const among = whole.c + from * 77;
                ASSERT_TRUE(same_bits(alone, std::vector<float>(among, among + rows * 77))) << rows << " from " << from;
            }
        }
    }
}

TEST_P(MatrixProduct, KeepsNaNWhereItBelongs) {
    const Runtime runtime(1, GetParam());
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    for (const Form form : {Form::rows_by_rows, Form::rows_by_columns, Form::columns_by_rows}) {
        const Problem<float> problem({29, 45, 33}, form, 7);
        problem.a.at(16, 5) = nan;
        problem.b.at(32, 44) = infinity;
        multiply(problem.product(), runtime);
        for (std::int64_t row = 0; row < 29; ++row) {
            for (std::int64_t column = 0; column < 45; ++column) {
                const float found = problem.c.at(row, column);
                EXPECT_EQ(std::isnan(found), row == 16);
                EXPECT_EQ(std::isinf(found), row != 16 && column == 44);
            }
        }
    }
}

TEST_P(MatrixProduct, RowsAddUp) {
    for (const std::int64_t columns : {1, 15, 64, 300}) {
        std::mt19937_64 random(8);
        const Matrix<float> rows(1000, columns, false, random, Guarded::Side::end);
        std::optional<std::vector<float>> first;
        for (std::int64_t threads = 1; threads <= 3; ++threads) {
            std::vector<float> sums(static_cast<std::size_t>(columns), 2.0F);
            add_rows(sums.data(), rows.data, 1000, columns, Runtime(threads, GetParam()));
            for (std::int64_t column = 0; column < columns; ++column) {
                double expected = 0;
                for (std::int64_t row = 0; row < 1000; ++row) {
                    expected += rows.at(row, column);
                }
                // Rounded to float once as a sum, and once more added to the 2.
                ASSERT_NEAR(sums[static_cast<std::size_t>(column)], expected + 2,
                            0x1p-24 * (2 * std::fabs(expected) + 2) + 1e-9);
            }
            if (!first) {
                first = sums;
            }
            ASSERT_TRUE(same_bits(*first, sums));
        }
    }
}

}  // namespace
}  // namespace qkv::nn
