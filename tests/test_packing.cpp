// How rows come in and go out, are packed, and are masked, by the verbs of every instruction set that this machine has.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "qkv/runtime.hpp"
#include "support/guard.hpp"
#include "support/kernels.hpp"

namespace qkv::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(Packing, EverySet, testing::ValuesIn(available()), name_of);

template <class T>
void check_rows(const Kernels<float>& kernels) {
    std::mt19937 random(3);
    for (const std::int64_t width : {1, 3, 8, 15, 16, 17, 33, 64, 70}) {
        constexpr std::int64_t kRows = 5;
        const std::int64_t stride = width + 3;
        std::vector<T> stored(static_cast<std::size_t>(kRows * stride));
        for (T& value : stored) {
            value = static_cast<T>(std::bit_cast<float>(static_cast<std::uint32_t>(random()) & 0xC6FFFFFFU));
        }
        const Room<float> rows(kRows * padded(width)), room(kernels.key_room(width)), one_hot(padded(width)),
            column(kKeyTile);
        const Rows from{reinterpret_cast<const std::byte*>(stored.data()), dtype_of<T>, stride, kRows};
        EXPECT_TRUE(kernels.load(rows.data, padded(width), from, width, 1.0F));
        const float* keys = kernels.pack_keys(room.data, 0, loaded(rows.data, kRows, width), width, nullptr);
        for (std::int64_t i = 0; i < width; ++i) {  // a query that is 1 at i finds number i of every key
            std::fill_n(one_hot.data, padded(width), 0.0F);
            one_hot.data[i] = 1.0F;
            kernels.multiply_keys(column.data, one_hot.data, keys, 1, kRows, width, nullptr);
            for (std::int64_t r = 0; r < kLanes; ++r) {
                ASSERT_EQ(column.data[r],
                          r < kRows ? static_cast<float>(stored[static_cast<std::size_t>(r * stride + i)]) : 0.0F)
                    << width << ' ' << i << ' ' << r;
            }
        }
        std::vector<T> back(static_cast<std::size_t>(width));
        for (std::int64_t r = 0; r < kRows; ++r) {
            for (std::int64_t i = 0; i < padded(width); ++i) {
                const float expected =
                    i < width ? static_cast<float>(stored[static_cast<std::size_t>(r * stride + i)]) : 0.0F;
                ASSERT_EQ(rows.data[r * padded(width) + i], expected) << width;
            }
            const float one = 1.0F;
            kernels.store({reinterpret_cast<std::byte*>(back.data()), dtype_of<T>, width, 1},
                          rows.data + r * padded(width), width, &one, 0);
            for (std::int64_t i = 0; i < width; ++i) {
                ASSERT_EQ(static_cast<float>(back[static_cast<std::size_t>(i)]), rows.data[r * padded(width) + i]);
            }
        }
        for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
            std::vector<T> poisoned = stored;
            poisoned[static_cast<std::size_t>(3 * stride + width - 1)] = static_cast<T>(bad);
            const Rows other{reinterpret_cast<const std::byte*>(poisoned.data()), dtype_of<T>, stride, kRows};
            EXPECT_FALSE(kernels.load(rows.data, padded(width), other, width, 1.0F)) << width;
        }
    }
}

TEST_P(EverySet, RowsComeInAndGoOutAsTheyAre) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    check_rows<float>(kernels);
    check_rows<BFloat16>(kernels);
    check_rows<Float16>(kernels);
}

/// Any bits that are a number, one row after another with something between them, and nothing past the last.
template <class T>
std::vector<T> stored_rows(std::int64_t rows, std::int64_t width, std::int64_t stride) {
    std::mt19937 random(7);
    std::vector<T> stored(static_cast<std::size_t>((rows - 1) * stride + width));
    for (T& value : stored) {
        value = T(std::bit_cast<float>(static_cast<std::uint32_t>(random()) & 0xC6FFFFFFU));
    }
    return stored;
}

/// Queries, keys and values from where they lie have the products of loaded ones, bit for bit, and so has who asks for
/// memory meanwhile. Returns how many are packed from there.
template <class T>
std::int64_t check_stored(InstructionSet set) {
    const Kernels<float>& kernels = table<float>(set, dtype_of<T>);
    const Entered entered(kernels);
    std::int64_t packed = 0;
    std::int64_t taken = 0;
    for (const std::int64_t width : {1, 8, 15, 16, 31, 32, 33, 48, 64, 80, 96, 128, 144}) {
        for (const std::int64_t count : {1, 2, 15, 16, 33, 63, 64}) {
            const std::int64_t stride = width + 5;
            const std::vector<T> numbers = stored_rows<T>(count, width, stride);
            const support::Guarded stored(numbers.size() * sizeof(T));
            std::memcpy(stored.data(), numbers.data(), numbers.size() * sizeof(T));
            const Rows rows{stored.data(), dtype_of<T>, stride, count};
            if (!kernels.packs(rows, width)) {
                continue;
            }
            ++packed;
            const Room<float> floats(count * padded(width));
            (void)kernels.load(floats.data, padded(width), rows, width, 1.0F);
            const Rows loaded_rows = loaded(floats.data, count, width);
            const auto same = [&](const Room<float>& a, const Room<float>& b, std::int64_t size) {
                return std::memcmp(a.data, b.data, static_cast<std::size_t>(size) * sizeof(float)) == 0;
            };
            const Room<float> queries(kernels.query_room(width)), keys(kernels.key_room(width)),
                values(kernels.value_room(width)), other_values(kernels.value_room(width)),
                scores(kQueryTile * kKeyTile), expected(kQueryTile * kKeyTile), weights(kQueryTile * kKeyTile),
                context(kQueryTile * padded(width)), expected_context(kQueryTile * padded(width));
            for (const bool first : {true, false}) {
                // The rows are the queries too; those of a plain set are loaded always, for the scale.
                const Rows& from = first ? rows : loaded_rows;
                const float* q = kernels.pack_queries(queries.data, kernels.scales_queries ? loaded_rows : from, width);
                Ahead ahead;
                ahead.add(rows, width);
                const std::int64_t cut = first ? std::min(count, kLanes) : count;  // in one run, or in two
                Rows run{from.data, from.dtype, from.stride, cut};
                const float* k = kernels.pack_keys(keys.data, 0, run, width, first ? &ahead : nullptr);
                run = {from.data + cut * from.stride * size_of(from.dtype), from.dtype, from.stride, count - cut};
                if (run.rows > 0) {
                    k = kernels.pack_keys(keys.data, cut, run, width, nullptr);
                }
                kernels.multiply_keys(first ? scores.data : expected.data, q, k, count, count, width,
                                      first ? &ahead : nullptr);
            }
            for (std::int64_t r = 0; r < count; ++r) {
                EXPECT_EQ(std::memcmp(scores.data + r * kKeyTile, expected.data + r * kKeyTile,
                                      static_cast<std::size_t>(count) * sizeof(float)),
                          0)
                    << width << ' ' << count << ' ' << r;
            }
            fill(weights, kQueryTile * kKeyTile, 9);
            for (std::int64_t at = 0; at < kQueryTile; ++at) {  // as the set rounds them, and 0 past the keys
                std::fill_n(weights.data + at * kKeyTile + count, kKeyTile - count, 0.0F);
            }
            kernels.round_weights(weights.data, kQueryTile);
            // Of many rows, or of few that take them from where they lie: in one run, in two, or as loaded.
            for (const std::int64_t height : {64, 1, 2, 3, 5, 6, 7, 12, 13, 24}) {
                std::fill_n(expected_context.data, kQueryTile * padded(width), 3.0F);
                kernels.add_values(expected_context.data, weights.data,
                                   kernels.pack_values(values.data, loaded_rows, width), height, count, width);
                const auto check = [&](const char* which, const auto& add) {
                    std::fill_n(context.data, kQueryTile * padded(width), 3.0F);
                    add();
                    EXPECT_TRUE(same(context, expected_context, height * padded(width)))
                        << which << ' ' << width << ' ' << count << ' ' << height;
                };
                check("packed", [&] {
                    kernels.add_values(context.data, weights.data, kernels.pack_values(other_values.data, rows, width),
                                       height, count, width);
                });
                if (height > kernels.few_value_rows) {
                    continue;
                }
                const auto add = [&](std::int64_t first, const Rows& run, Ahead* ahead) {
                    kernels.add_stored_values(context.data, weights.data, first, run, height, width, ahead);
                };
                check("loaded", [&] { add(0, loaded_rows, nullptr); });
                const std::int64_t half = count / 2;
                const Rows first{rows.data, rows.dtype, stride, half};
                const Rows second{rows.data + half * stride * static_cast<std::int64_t>(sizeof(T)), rows.dtype, stride,
                                  count - half};
                if (kernels.takes_stored_values(rows, width, true)) {
                    ++taken;
                    check("stored", [&] {
                        Ahead ahead;
                        ahead.add(rows, width);
                        add(0, rows, &ahead);
                    });
                }
                if (half > 0 && kernels.takes_stored_values(first, width, false) &&
                    kernels.takes_stored_values(second, width, true)) {
                    check("in two runs", [&] {
                        add(0, first, nullptr);
                        add(half, second, nullptr);
                    });
                }
            }
        }
    }
    EXPECT_EQ(taken > 0, packed > 0 && kernels.few_value_rows > 0);
    return packed;
}

/// A few queries meet keys where they lie, in one run or in two, and the scores have the bits of packed keys'. Returns
/// how often.
template <class T>
std::int64_t check_stored_keys(InstructionSet set) {
    const Kernels<float>& kernels = table<float>(set, dtype_of<T>);
    const Entered entered(kernels);
    std::int64_t met = 0;
    for (const std::int64_t width : {8, 15, 16, 48, 64, 80, 128, 144}) {
        const std::vector<T> query_numbers = stored_rows<T>(kernels.few_key_rows + 1, width, width + 2);
        const Rows stored_queries{reinterpret_cast<const std::byte*>(query_numbers.data()), dtype_of<T>, width + 2,
                                  kernels.few_key_rows};
        const Room<float> floats(kQueryTile * padded(width)), room(kernels.query_room(width));
        (void)kernels.load(floats.data, padded(width), stored_queries, width, 0.5F);
        const float* queries = kernels.pack_queries(room.data, loaded(floats.data, stored_queries.rows, width), width);
        for (const std::int64_t count : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64}) {
            const std::int64_t stride = width + 5;
            const std::vector<T> numbers = stored_rows<T>(count, width, stride);
            const support::Guarded stored(numbers.size() * sizeof(T));  // nothing may be read past the last number
            std::memcpy(stored.data(), numbers.data(), numbers.size() * sizeof(T));
            const Rows rows{stored.data(), dtype_of<T>, stride, count};
            if (!kernels.takes_stored_keys(rows, width)) {
                continue;
            }
            const Room<float> keys(kernels.key_room(width)), expected(kQueryTile * kKeyTile),
                scores(kQueryTile * kKeyTile);
            const float* packed = kernels.pack_keys(keys.data, 0, rows, width, nullptr);
            for (std::int64_t height = 1; height <= kernels.few_key_rows; ++height) {
                kernels.multiply_keys(expected.data, queries, packed, height, count, width, nullptr);
                for (const std::int64_t cut : {count, std::int64_t{16}, std::int64_t{32}}) {
                    if (cut > count) {
                        continue;
                    }
                    std::fill_n(scores.data, kQueryTile * kKeyTile, 1e30F);
                    Ahead ahead;
                    ahead.add(rows, width);
                    kernels.multiply_stored_keys(scores.data, queries, 0, {rows.data, rows.dtype, stride, cut}, height,
                                                 width, cut == count ? &ahead : nullptr);
                    const Rows rest{rows.data + cut * stride * size_of(rows.dtype), rows.dtype, stride, count - cut};
                    kernels.multiply_stored_keys(scores.data, queries, cut, rest, height, width, nullptr);
                    for (std::int64_t r = 0; r < kQueryTile; ++r) {
                        const float* row = scores.data + r * kKeyTile;
                        EXPECT_TRUE(r < height ? std::memcmp(row, expected.data + r * kKeyTile,
                                                             static_cast<std::size_t>(count) * sizeof(float)) == 0
                                               : std::all_of(
                                                     row, row + kKeyTile, [](float x) { return x == 1e30F; }))
                            << width << ' ' << count << ' ' << height << ' ' << cut << ' ' << r;
                    }
                    ++met;
                }
            }
        }
    }
    return met;
}

TEST_P(EverySet, AFewQueriesMeetKeysWhereTheyLie) {
    const auto takes = [&](DType dtype) { return table<float>(GetParam(), dtype).few_key_rows > 0; };
    EXPECT_EQ(check_stored_keys<float>(GetParam()) > 0, takes(DType::f32));
    EXPECT_EQ(check_stored_keys<BFloat16>(GetParam()) > 0, takes(DType::bf16));
    EXPECT_EQ(check_stored_keys<Float16>(GetParam()) > 0, takes(DType::f16) && GetParam() != InstructionSet::sse4);
    EXPECT_EQ(takes(DType::f32), GetParam() != InstructionSet::scalar);
}

TEST_P(EverySet, StoredRowsAreMultipliedAsLoadedOnes) {
    const bool vectors = GetParam() != InstructionSet::scalar;
    EXPECT_GT(check_stored<float>(GetParam()), 0);
    EXPECT_EQ(check_stored<BFloat16>(GetParam()) > 0, vectors);
    EXPECT_EQ(check_stored<Float16>(GetParam()) > 0, vectors && GetParam() != InstructionSet::sse4);
}

/// All lines of rows that lie apart or side by side, in order, however many are taken at a time.
TEST(AskedAhead, NamesTheLinesOfRows) {
    alignas(64) static const std::byte memory[8192] = {};
    const Rows apart{memory, DType::f32, 100, 5};            // rows of 40 numbers: 160 bytes, 3 lines each
    const Rows together{memory + 4096, DType::bf16, 40, 7};  // 560 bytes, 9 lines
    const Rows none{memory, DType::f32, 100, 0};
    std::vector<const std::byte*> expected;
    for (std::int64_t row = 0; row < 5; ++row) {
        for (std::int64_t line = 0; line < 3; ++line) {
            expected.push_back(memory + row * 400 + line * 64);
        }
    }
    for (std::int64_t line = 0; line < 9; ++line) {
        expected.push_back(memory + 4096 + line * 64);
    }
    for (const std::int64_t most : {1, 2, 3, 4, 7, 100}) {
        Ahead ahead;
        EXPECT_TRUE(ahead.empty());
        ahead.add(apart, 40);
        ahead.add(none, 40);
        ahead.add(together, 40);
        std::vector<const std::byte*> found;
        while (!ahead.empty()) {
            Ahead::Lines lines = ahead.take(most);
            ASSERT_LE(lines.count, most);
            for (; lines.count > 0; --lines.count) {  // as the kernels walk
                found.push_back(lines.at);
                lines.at += Ahead::kLine;
                if (lines.at >= lines.row_end) {
                    lines.row_end += lines.row_step;
                    lines.at = lines.row_end - lines.row_bytes;
                }
            }
        }
        EXPECT_EQ(found, expected) << most;
        EXPECT_EQ(ahead.take(most).count, 0);
    }
}

/// What is masked, drawn: column c of row r.
bool is_kept(std::int64_t r, std::int64_t c) { return (r * 7 + c * c) % 5 != 0; }

TEST_P(EverySet, MasksAreWordsOfBits) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    constexpr std::int64_t kRows = 9;
    constexpr std::int64_t kStride = kKeyTile + 3;
    std::vector<std::uint8_t> bytes(kRows * kStride);
    std::vector<float> bias(kRows * kStride);
    for (std::int64_t at = 0; at < kRows * kStride; ++at) {
        const bool kept = is_kept(at / kStride, at % kStride);
        bytes[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(kept ? 1 + at % 255 : 0);
        bias[static_cast<std::size_t>(at)] = kept ? (at % 3 == 0 ? std::nanf("") : 1.5F) : -kInfinity;
    }
    std::array<std::uint64_t, kRows> by_bytes{};
    by_bytes.fill(~std::uint64_t{0} << 1U);  // column 0 is gone already
    std::array<std::uint64_t, kRows> by_bias = by_bytes;
    kernels.keep_true(by_bytes.data(), bytes.data(), kStride, kRows);
    kernels.keep_unmasked(by_bias.data(),
                          {reinterpret_cast<const std::byte*>(bias.data()), DType::f32, kStride, kRows});
    EXPECT_EQ(by_bytes, by_bias);
    const Room<float> scores(kRows * kKeyTile);
    std::fill_n(scores.data, kRows * kKeyTile, std::nanf(""));
    kernels.mask(scores.data, by_bytes.data(), kRows);
    for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t c = 0; c < kKeyTile; ++c) {
            const bool kept = c > 0 && is_kept(r, c);
            ASSERT_EQ((by_bytes[static_cast<std::size_t>(r)] >> static_cast<unsigned>(c) & 1U) != 0, kept)
                << r << ' ' << c;
            ASSERT_EQ(std::isnan(scores.data[r * kKeyTile + c]), kept);
            ASSERT_EQ(scores.data[r * kKeyTile + c] == -kInfinity, !kept);
        }
    }
}

TEST_P(EverySet, BiasIsAddedToTheScaledProductAndMasksEvenNaN) {
    const Kernels<float>& kernels = table<float>(GetParam(), DType::f32);
    const Room<float> scores(2 * kKeyTile);
    std::vector<Float16> bias(2 * kKeyTile);
    for (std::int64_t at = 0; at < 2 * kKeyTile; ++at) {
        scores.data[at] = at % 3 == 0 ? std::nanf("") : static_cast<float>(at);
        bias[static_cast<std::size_t>(at)] = Float16(at % 6 == 0 ? -kInfinity : 0.5F * static_cast<float>(at));
    }
    kernels.add(scores.data, {reinterpret_cast<const std::byte*>(bias.data()), DType::f16, kKeyTile, 2}, 2.0F);
    for (std::int64_t at = 0; at < 2 * kKeyTile; ++at) {
        if (at % 6 == 0) {
            ASSERT_EQ(scores.data[at], -kInfinity) << at;
        } else if (at % 3 == 0) {
            ASSERT_TRUE(std::isnan(scores.data[at])) << at;
        } else {
            ASSERT_EQ(scores.data[at], 2.5F * static_cast<float>(at)) << at;
        }
    }
}

}  // namespace
}  // namespace qkv::kernels
