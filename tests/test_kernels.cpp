// The verbs of every instruction set that this machine has, one by one. QKV_TEST_EXP_STEP=1 sweeps exp over all floats.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "qkv/error.hpp"
#include "qkv/runtime.hpp"
#include "support/kernels.hpp"

namespace qkv::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(Kernels, EverySet, testing::ValuesIn(available()), name_of);

/// Calls check(x, exp as the table has it) for every float, or every so many.
template <class Check>
void sweep_exp(const Kernels<float>& kernels, const Check& check) {
    const char* text = std::getenv("QKV_TEST_EXP_STEP");
    const std::uint64_t step = text == nullptr ? 1031 : std::strtoull(text, nullptr, 10);
    const Room<float> x(kKeyTile), y(kKeyTile);
    const float base = 0.0F;
    const Entered entered(kernels);
    for (std::uint64_t bits = 0; bits <= 0xFFFFFFFFU;) {
        for (std::int64_t c = 0; c < kKeyTile; ++c, bits += step) {
            x.data[c] = std::bit_cast<float>(static_cast<std::uint32_t>(std::min<std::uint64_t>(bits, 0xFFFFFFFFU)));
        }
        kernels.weigh(y.data, x.data, &base, 1);
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            check(x.data[c], y.data[c]);
        }
    }
}

TEST_P(EverySet, ExpIsWithinOneFloatDownToItsCutAndZeroBelow) {
    std::int64_t worst = 0;
    std::int64_t wrong = 0;
    sweep_exp(table<float>(GetParam(), DType::f32), [&](float x, float got) {
        if (std::isnan(x)) {
            wrong += std::isnan(got) ? 0 : 1;
        } else if (x < -87.33F) {
            wrong += std::bit_cast<std::uint32_t>(got) == 0 ? 0 : 1;
        } else {
            const auto expected = static_cast<float>(std::exp(static_cast<double>(x)));
            worst = std::max(worst, std::abs(static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(got)) -
                                             static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(expected))));
        }
    });
    EXPECT_LE(worst, 1);
    EXPECT_EQ(wrong, 0);
}

TEST_P(EverySet, ExpForWeightsOf16BitsIsWithinTheirReach) {
    double worst = 0.0;
    double worst_near = 0.0;  // of the weights that make up nearly all of lse
    std::int64_t wrong = 0;
    sweep_exp(table<float>(GetParam(), DType::bf16), [&](float x, float got) {
        const double expected = std::exp(static_cast<double>(x));
        if (std::isnan(x)) {
            wrong += std::isnan(got) ? 0 : 1;
        } else if (x < -87.33F) {
            wrong += std::bit_cast<std::uint32_t>(got) == 0 ? 0 : 1;
        } else if (x < 88.0F) {
            const double error = std::fabs(static_cast<double>(got) / expected - 1.0);
            worst = std::max(worst, error);
            worst_near = std::fabs(x) <= 1.0F ? std::max(worst_near, error) : worst_near;
        }
    });
    EXPECT_LE(worst, 0x1p-17);
    EXPECT_LE(worst_near, 0x1p-22);
    EXPECT_EQ(wrong, 0);
}

TEST_P(EverySet, TanhIsWithinTwoFloats) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    const Room<float> x(kKeyTile);
    std::int64_t worst = 0;
    for (int step = 0; step < 4000; ++step) {
        float before[kKeyTile];
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            x.data[c] = before[c] = static_cast<float>(step * kKeyTile + c - 128000) * 1e-4F;
        }
        kernels.cap(x.data, 1, 1.0F);
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            const auto expected = static_cast<float>(std::tanh(static_cast<double>(before[c])));
            worst = std::max(worst, std::abs(static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(x.data[c])) -
                                             static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(expected))));
        }
    }
    EXPECT_LE(worst, 2);
}

/// Q Kᵀ and P V of every height of block, against sums in float64.
TEST_P(EverySet, ProductsOfForwardAreTheProducts) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    constexpr std::int64_t kColumns = 37;
    for (const std::int64_t width : {16, 32, 48, 64, 80, 96, 112, 160}) {
        for (std::int64_t rows = 1; rows <= 14; ++rows) {
            const Room<float> left(kQueryTile * width), right(kKeyTile * width), packed(kernels.key_room(width)),
                packed_values(kernels.value_room(width)), scores(kQueryTile * kKeyTile), weights(kQueryTile * kKeyTile),
                sums(kQueryTile * width);
            fill(left, rows * width, 1);
            fill(right, kKeyTile * width, 2);
            fill(weights, rows * kKeyTile, 3);
            std::fill_n(sums.data, rows * width, 100.0F);
            const float* keys = kernels.pack_keys(packed.data, 0, loaded(right.data, kKeyTile, width), width, nullptr);
            kernels.multiply_keys(scores.data, left.data, keys, rows, kKeyTile, width, nullptr);
            const float* values = kernels.pack_values(packed_values.data, loaded(right.data, kColumns, width), width);
            kernels.add_values(sums.data, weights.data, values, rows, kColumns, width);
            for (std::int64_t r = 0; r < rows; ++r) {
                for (std::int64_t c = 0; c < kKeyTile; ++c) {
                    double expected = 0;
                    for (std::int64_t i = 0; i < width; ++i) {
                        expected += static_cast<double>(left.data[r * width + i]) *
                                    static_cast<double>(right.data[c * width + i]);
                    }
                    ASSERT_NEAR(scores.data[r * kKeyTile + c], expected, 1e-4) << rows << ' ' << width;
                }
                for (std::int64_t i = 0; i < width; ++i) {
                    double expected = 100;
                    for (std::int64_t c = 0; c < kColumns; ++c) {
                        expected += static_cast<double>(weights.data[r * kKeyTile + c]) *
                                    static_cast<double>(right.data[c * width + i]);
                    }
                    ASSERT_NEAR(sums.data[r * width + i], expected, 2e-3) << rows << ' ' << width;
                }
            }
        }
    }
}

/// dV = Pᵀ dO and dQ = dS K of tiles that are not whole, for inputs of either type, against sums in float64.
TEST_P(EverySet, SumsOfBackwardAreTheProducts) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const Kernels<float>& kernels = table<float>(GetParam(), dtype);
        const Entered entered(kernels);
        for (const std::int64_t width : {1, 16, 40, 64, 112}) {
            for (const std::int64_t rows : {1, 31, 33, 64}) {
                constexpr std::int64_t kColumns = 50;
                const std::int64_t across = padded(width);
                const Room<float> left(kQueryTile * kKeyTile), right(kQueryTile * across),
                    form(kernels.query_sum_room(width)), pairs(kQueryTile * kKeyTile), sums(kKeyTile * across),
                    as_rows(kKeyTile * across), values(kernels.value_room(width)), context(kQueryTile * across);
                std::fill_n(left.data, kQueryTile * kKeyTile, 0.0F);
                std::fill_n(right.data, kQueryTile * across, 0.0F);
                std::fill_n(sums.data, kKeyTile * across, 0.0F);
                std::fill_n(context.data, kQueryTile * across, 0.0F);
                for (std::int64_t r = 0; r < rows; ++r) {  // small whole numbers: exact in bf16, and so are the sums
                    for (std::int64_t c = 0; c < kColumns; ++c) {
                        left.data[r * kKeyTile + c] = static_cast<float>((r * 7 + c * 5) % 23 - 11);
                    }
                    for (std::int64_t i = 0; i < width; ++i) {
                        right.data[r * across + i] = static_cast<float>((r * 3 + i * 11) % 19 - 9);
                    }
                }
                const float* packed = kernels.pack_query_sums(form.data, right.data, rows, width);
                for (int time = 0; time < 2; ++time) {
                    kernels.add_over_queries(sums.data, kernels.pack_weights(pairs.data, left.data, rows), packed, rows,
                                             kColumns, width);
                }
                const float* got = kernels.sums_as_rows(as_rows.data, sums.data, width);
                for (std::int64_t c = 0; c < kColumns; ++c) {
                    for (std::int64_t i = 0; i < width; ++i) {
                        float expected = 0;
                        for (std::int64_t r = 0; r < rows; ++r) {
                            expected += 2 * left.data[r * kKeyTile + c] * right.data[r * across + i];
                        }
                        const std::int64_t at = kernels.sums_transposed ? i * kKeyTile + c : c * across + i;
                        ASSERT_EQ(sums.data[at], expected) << width << ' ' << rows << ' ' << c << ' ' << i;
                        ASSERT_EQ(got[c * across + i], expected) << width << ' ' << rows << ' ' << c << ' ' << i;
                    }
                }
                const std::vector<float> kept(left.data, left.data + kQueryTile * kKeyTile);
                kernels.round_weights(left.data, rows);
                kernels.add_values(context.data, left.data,
                                   kernels.pack_values(values.data, loaded(right.data, kColumns, width), width), rows,
                                   kColumns, width);
                for (std::int64_t r = 0; r < rows; ++r) {
                    for (std::int64_t i = 0; i < width; ++i) {
                        float expected = 0;
                        for (std::int64_t c = 0; c < kColumns; ++c) {
                            expected += kept[static_cast<std::size_t>(r * kKeyTile + c)] * right.data[c * across + i];
                        }
                        ASSERT_EQ(context.data[r * across + i], expected) << width << ' ' << rows;
                    }
                }
            }
        }
    }
}

/// Several tiles at once are several tiles one by one, also where references move on the way.
TEST_P(EverySet, AttendHasTheBitsOfItsSteps) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const Kernels<float>& kernels = table<float>(GetParam(), dtype);
        const Entered entered(kernels);
        for (const auto& [rows, stored] : {std::pair{5, false}, {5, true}, {64, false}, {64, true}}) {
            if (stored && rows > kernels.few_value_rows) {
                continue;  // the set packs always
            }
            constexpr std::int64_t kDim = 48, kValueDim = 72, kTiles = kMostAttended;
            const auto of_rows = static_cast<std::int64_t>(rows);
            const std::int64_t across = padded(kDim), value_across = padded(kValueDim);
            const auto whole = [](const Room<float>& room, std::int64_t of, std::int64_t width, std::int64_t step) {
                for (std::int64_t r = 0; r < of; ++r) {
                    for (std::int64_t i = 0; i < padded(width); ++i) {
                        room.data[r * padded(width) + i] =
                            i < width ? static_cast<float>((r * step + i * 7) % 17 - 8) : 0.0F;
                    }
                }
            };
            const Room<float> query(kQueryTile * across), query_room(kernels.query_room(kDim));
            whole(query, kQueryTile, kDim, 3);
            const float* queries = kernels.pack_queries(query_room.data, loaded(query.data, rows, kDim), kDim);
            std::vector<Room<float>> rooms;
            AttendedKeys<float> tiles[kTiles] = {};
            const float* packed_keys[kTiles] = {};
            const float* packed_values[kTiles] = {};
            for (std::int64_t tile = 0; tile < kTiles; ++tile) {
                rooms.emplace_back(kKeyTile * across);
                whole(rooms.back(), kKeyTile, kDim, 5 + tile);
                for (float& x : std::span(rooms.back().data, static_cast<std::size_t>(kKeyTile * across))) {
                    x *= static_cast<float>(1 << tile);  // later keys are larger: references move
                }
                const float* key = rooms.back().data;
                rooms.emplace_back(kernels.key_room(kDim));
                tiles[tile].keys = kernels.pack_keys(rooms.back().data, 0, loaded(key, kKeyTile, kDim), kDim, nullptr);
                rooms.emplace_back(kKeyTile * value_across);
                whole(rooms.back(), kKeyTile, kValueDim, 2 + tile);
                const float* value = rooms.back().data;
                rooms.emplace_back(kernels.value_room(kValueDim));
                tiles[tile].values =
                    kernels.pack_values(rooms.back().data, loaded(value, kKeyTile, kValueDim), kValueDim);
                tiles[tile].columns = kKeyTile;
                packed_values[tile] = tiles[tile].values;
                packed_keys[tile] = tiles[tile].keys;
                if (stored) {
                    tiles[tile].values = nullptr;
                    tiles[tile].stored_values = loaded(value, kKeyTile, kValueDim);
                    const Rows stored_keys = loaded(key, kKeyTile, kDim);
                    if (of_rows <= kernels.few_key_rows && kernels.takes_stored_keys(stored_keys, kDim)) {
                        tiles[tile].keys = nullptr;
                        tiles[tile].stored_keys = stored_keys;
                    }
                }
            }
            struct Gathered {
                Room<float> context{kQueryTile * padded(kValueDim)}, reference{kQueryTile}, sums{kQueryTile * kLanes};
            };
            const Gathered together, apart;
            for (const Gathered* gathered : {&together, &apart}) {
                std::fill_n(gathered->context.data, kQueryTile * value_across, 0.0F);
                std::fill_n(gathered->reference.data, kQueryTile, -kInfinity);
                std::fill_n(gathered->sums.data, kQueryTile * kLanes, 0.0F);
            }
            const Room<float> scores(kTiles * kQueryTile * kKeyTile);
            constexpr float kScale = 0.02F;
            const SoftmaxRows<float> softmax{together.reference.data, together.sums.data};
            const AttendedRows<float> attended{queries, softmax,  together.context.data, {}, kScale, rows,
                                               kDim,    kValueDim};
            kernels.attend(attended, tiles, kTiles, scores.data);
            std::int64_t moves = 0;
            for (std::int64_t at = 0; at < kTiles; ++at) {
                const std::vector<float> before(apart.reference.data, apart.reference.data + rows);
                kernels.multiply_keys(scores.data, queries, packed_keys[at], rows, kKeyTile, kDim, nullptr);
                kernels.soften(scores.data, scores.data, kScale, nullptr, {apart.reference.data, apart.sums.data},
                               apart.context.data, kValueDim, rows, kKeyTile);
                kernels.add_values(apart.context.data, scores.data, packed_values[at], rows, kKeyTile, kValueDim);
                moves += std::equal(before.begin(), before.end(), apart.reference.data) ? 0 : 1;
            }
            EXPECT_GE(moves, 3);
            const auto same = [](const Room<float>& a, const Room<float>& b, std::int64_t count) {
                return std::memcmp(a.data, b.data, static_cast<std::size_t>(count) * sizeof(float)) == 0;
            };
            EXPECT_TRUE(same(together.context, apart.context, rows * value_across));
            EXPECT_TRUE(same(together.reference, apart.reference, rows) && same(together.sums, apart.sums, rows * 16));
        }
    }
}

/// Past the columns there is −∞: softening them or not is the same, and so are weights side by side and one by one.
TEST_P(EverySet, SoftenTakesItsColumnsAndWeighsThemAsWeighDoes) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    constexpr std::int64_t kRows = 3, kDim = 16;
    for (const std::int64_t columns : {1, 16, 20, 37, 64}) {
        const Room<float> scores(kRows * kKeyTile), weights(kRows * kKeyTile), all(kRows * kKeyTile),
            weighed(kRows * kKeyTile);
        fill(scores, kRows * kKeyTile, 4);
        for (std::int64_t at = 0; at < kRows * kKeyTile; ++at) {
            scores.data[at] = at % kKeyTile < columns ? 30.0F * scores.data[at] : -kInfinity;
        }
        struct State {
            Room<float> reference{kLanes}, sums{kRows * kLanes}, context{kRows * kDim};
        };
        const State some, every;
        for (const State* state : {&some, &every}) {
            std::fill_n(state->reference.data, kRows, 0.5F);
            std::fill_n(state->sums.data, kRows * kLanes, 1.0F);
            std::fill_n(state->context.data, kRows * kDim, 2.0F);
        }
        kernels.soften(weights.data, scores.data, 1.0F, nullptr, {some.reference.data, some.sums.data},
                       some.context.data, kDim, kRows, columns);
        kernels.soften(all.data, scores.data, 1.0F, nullptr, {every.reference.data, every.sums.data},
                       every.context.data, kDim, kRows, kKeyTile);
        kernels.weigh(weighed.data, scores.data, every.reference.data, kRows);
        const auto same = [](const float* a, const float* b, std::int64_t count) {
            return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
        };
        EXPECT_TRUE(same(some.reference.data, every.reference.data, kRows)) << columns;
        EXPECT_TRUE(same(some.sums.data, every.sums.data, kRows * kLanes)) << columns;
        EXPECT_TRUE(same(some.context.data, every.context.data, kRows * kDim)) << columns;
        for (std::int64_t at = 0; at < kRows * kKeyTile; at += kKeyTile) {
            EXPECT_TRUE(same(weights.data + at, all.data + at, columns)) << columns;
            EXPECT_TRUE(same(all.data + at, weighed.data + at, kKeyTile)) << columns;
        }
    }
}

TEST_P(EverySet, StoresRowsWithTheirFactors) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    for (const std::int64_t width : {1, 16, 21, 64}) {
        constexpr std::int64_t kRows = 3;
        const std::int64_t stride = width + 5;
        const Room<float> from(kRows * padded(width));
        std::iota(from.data, from.data + kRows * padded(width), -7.0F);
        const float factors[] = {2.0F, -1.0F, 0.5F};
        for (const std::int64_t step : {0, 1}) {
            std::vector<float> to(static_cast<std::size_t>(kRows * stride), 99.0F);
            kernels.store({reinterpret_cast<std::byte*>(to.data()), DType::f32, stride, kRows}, from.data, width,
                          factors, step);
            for (std::int64_t at = 0; at < kRows * stride; ++at) {
                const std::int64_t r = at / stride, i = at % stride;
                const float expected = i < width ? from.data[r * padded(width) + i] * factors[r * step] : 99.0F;
                ASSERT_EQ(to[static_cast<std::size_t>(at)], expected) << width << ", row " << r << ", " << i;
            }
        }
    }
}

TEST_P(EverySet, DotsOfRowsAreSummedInDouble) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    for (const std::int64_t width : {1, 15, 16, 80, 256}) {
        constexpr std::int64_t kRows = 3;
        const Room<float> a(kRows * padded(width)), b(kRows * padded(width));
        float dots[kRows + 1] = {0, 0, 0, 99};
        long double exact[kRows] = {};
        for (std::int64_t r = 0; r < kRows; ++r) {
            for (std::int64_t i = 0; i < padded(width); ++i) {
                const std::int64_t at = r * padded(width) + i;
                a.data[at] = i < width ? 1e4F + normal(random) : 0.0F;  // floats would lose three digits
                b.data[at] = i < width ? normal(random) : 0.0F;
                exact[r] += static_cast<long double>(a.data[at]) * b.data[at];
            }
        }
        kernels.dot_rows(dots, a.data, b.data, kRows, width);
        for (std::int64_t r = 0; r < kRows; ++r) {
            ASSERT_NEAR(dots[r], static_cast<double>(exact[r]),
                        std::fabs(static_cast<double>(exact[r])) * 0x1p-23 + 1e-9)
                << width;
        }
        ASSERT_EQ(dots[kRows], 99.0F);
    }
}

/// Rounding to 16 bits has one answer, whoever does it.
TEST_P(EverySet, StoresRoundAsTheTypesDo) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    std::mt19937 random(4);
    const Room<float> x(kLanes);
    for (int round = 0; round < 20000; ++round) {
        for (std::int64_t i = 0; i < kLanes; ++i) {
            x.data[i] = std::bit_cast<float>(static_cast<std::uint32_t>(random())) + 0.0F;
        }
        BFloat16 bf16[kLanes];
        Float16 f16[kLanes];
        const float one = 1.0F;
        kernels.store({reinterpret_cast<std::byte*>(bf16), DType::bf16, kLanes, 1}, x.data, kLanes, &one, 0);
        kernels.store({reinterpret_cast<std::byte*>(f16), DType::f16, kLanes, 1}, x.data, kLanes, &one, 0);
        for (std::int64_t i = 0; i < kLanes; ++i) {
            const float value = x.data[i];
            if (!std::isnan(value)) {
                ASSERT_EQ(bf16[i].bits, BFloat16(value).bits) << value;
                ASSERT_EQ(f16[i].bits, Float16(value).bits) << value;
            } else {
                ASSERT_TRUE(std::isnan(static_cast<float>(bf16[i])) && std::isnan(static_cast<float>(f16[i])));
            }
        }
    }
}

/// The known answers that come with Random123, the authors' implementation, told from what a draw just reaches and what
/// it just misses.
TEST_P(EverySet, DropoutDrawsThePublishedNumbers) {
    constexpr std::uint32_t kOnes = 0xFFFFFFFFU;
    const struct {
        std::uint32_t part;
        std::array<std::uint32_t, 4> words;
    } answers[] = {{0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                   {kOnes, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}};
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    for (const auto& [part, words] : answers) {
        const std::uint64_t seed = std::uint64_t{part} << 32U | part;
        for (std::size_t word = 0; word < 4; ++word) {
            const std::int64_t key = std::int64_t{4} * part + static_cast<std::int64_t>(word);
            for (const std::uint32_t more : {0U, 1U}) {
                std::array<float, kKeyTile> factors{};
                kernels.draw_factors(factors.data(), {key, {part, part, part}, seed, words.at(word) + more, 1.25F}, 1,
                                     1);
                EXPECT_EQ(factors[0], more == 0 ? 1.25F : 0.0F) << part << ' ' << word;
                EXPECT_EQ(std::ranges::count(factors, 0.0F), more == 0 ? kKeyTile - 1 : kKeyTile);
            }
        }
    }
    // Rows side by side draw what each draws alone.
    for (const std::int64_t rows : {1, 2, 3, 4, 7, 64}) {
        for (const std::int64_t columns : {1, 15, 61, 64}) {
            const DropoutRows<float> draw{1001, {77, 5, 3}, 12345, 1U << 31U, 2.0F};
            std::vector<float> together(static_cast<std::size_t>(rows * kKeyTile), -1.0F);
            kernels.draw_factors(together.data(), draw, rows, columns);
            for (std::int64_t r = 0; r < rows; ++r) {
                DropoutRows<float> own = draw;
                own.counter[0] += static_cast<std::uint32_t>(r);
                std::array<float, kKeyTile> alone{};
                kernels.draw_factors(alone.data(), own, 1, columns);
                EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + r * kKeyTile))
                    << rows << ' ' << columns << ' ' << r;
            }
        }
    }
}

/// A row's weights and sums do not depend on where the reference has come to rest, up to rounding.
TEST_P(EverySet, SoftenIsAlwaysRelativeToItsReference) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    const Room<float> scores(kKeyTile), weights(kKeyTile), sums(kLanes), context(kLanes);
    float reference = -kInfinity;
    std::fill_n(sums.data, kLanes, 0.0F);
    std::fill_n(context.data, kLanes, 1.0F);
    double expected_sum = 0.0;
    double expected_context = 1.0;
    for (const float height : {-30.0F, 0.0F, 5.0F, 4.0F, 20.0F, -100.0F}) {
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            scores.data[c] = c == 7 ? -kInfinity : height - static_cast<float>(c) * 0.25F;
        }
        const float before = reference;
        kernels.soften(weights.data, scores.data, 1.0F, nullptr, {&reference, sums.data}, context.data, 1, 1, kKeyTile);
        EXPECT_GE(reference, height - 8.0F);
        if (before != -kInfinity) {
            const double shrink = std::exp(static_cast<double>(before) - static_cast<double>(reference));
            expected_sum *= shrink;
            expected_context *= shrink;
        }
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            const double x = static_cast<double>(scores.data[c]) - static_cast<double>(reference);
            const double expected = x < -87.33 ? 0.0 : std::exp(x);
            expected_sum += expected;
            EXPECT_NEAR(weights.data[c], expected, expected * 1e-6);
        }
        double sum = 0.0;
        for (std::int64_t lane = 0; lane < kLanes; ++lane) {
            sum += static_cast<double>(sums.data[lane]);
        }
        EXPECT_NEAR(sum, expected_sum, expected_sum * 1e-6);
        EXPECT_NEAR(context.data[0], expected_context, expected_context * 1e-6 + 1e-37);
    }
}

TEST(InstructionSets, AreRefusedByName) {
    for (const InstructionSetInfo& info : instruction_sets()) {
        if (info.available) {
            EXPECT_EQ(Runtime(1, info.set).instruction_set(), info.set);
        } else {
            EXPECT_THROW(Runtime(1, info.set), Error);
        }
    }
#if defined(__x86_64__)
    EXPECT_THROW(Runtime(1, InstructionSet::neon), Error);
#endif
}

}  // namespace
}  // namespace qkv::kernels
