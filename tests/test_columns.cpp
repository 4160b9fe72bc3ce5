// Products that leave out what a causal mask takes away, by the verbs of every instruction set that this machine has.
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "support/kernels.hpp"

namespace qkv::kernels {
namespace {

INSTANTIATE_TEST_SUITE_P(Columns, EverySet, testing::ValuesIn(available()), name_of);

/// Products may leave out what lies past a diagonal: what they do compute has the bits of whole tiles.
TEST_P(EverySet, ColumnsPastADiagonalAreLeftOut) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const Kernels<float>& kernels = table<float>(GetParam(), dtype);
        const Entered entered(kernels);
        const auto fill_rows = [](const Room<float>& room, std::int64_t rows, std::int64_t width, std::int64_t step) {
            std::fill_n(room.data, kKeyTile * padded(width), 0.0F);
            for (std::int64_t r = 0; r < rows; ++r) {
                for (std::int64_t i = 0; i < width; ++i) {  // numbers of bf16
                    room.data[r * padded(width) + i] = static_cast<float>((r * step + i * 7) % 17 - 8) / 4.0F;
                }
            }
        };
        for (const auto& [rows, columns, width] : {std::tuple{64, 64, 40}, {37, 64, 64}, {64, 51, 72}, {5, 13, 16}}) {
            for (const std::int64_t of_first_row : {-20, 0, 1, 6, 31, 63}) {
                const Columns met(columns, of_first_row);
                const Room<float> a(kQueryTile * padded(width)), b(kKeyTile * padded(width)),
                    query_room(kernels.query_room(width)), key_room(kernels.key_room(width)),
                    value_room(kernels.value_room(width)), sum_room(kernels.query_sum_room(width));
                fill_rows(a, rows, width, 3);
                fill_rows(b, columns, width, 5);
                const float* queries = kernels.pack_queries(query_room.data, loaded(a.data, rows, width), width);
                const float* keys = kernels.pack_keys(key_room.data, 0, loaded(b.data, columns, width), width, nullptr);
                const float* values = kernels.pack_values(value_room.data, loaded(b.data, columns, width), width);
                const float* query_sums = kernels.pack_query_sums(sum_room.data, a.data, rows, width);
                const auto where = [&, rows = rows, columns = columns, width = width] {
                    return std::string(name(dtype)) + ' ' + std::to_string(rows) + " × " + std::to_string(columns) +
                           " D " + std::to_string(width) + ", first row " + std::to_string(of_first_row);
                };
                const Room<float> whole(kQueryTile * kKeyTile), part(kQueryTile * kKeyTile);
                std::fill_n(part.data, kQueryTile * kKeyTile, 1e30F);
                kernels.multiply_keys(whole.data, queries, keys, rows, columns, width, nullptr);
                kernels.multiply_keys(part.data, queries, keys, rows, met, width, nullptr);
                std::int64_t left_out = 0;
                for (std::int64_t r = 0; r < rows; ++r) {
                    for (std::int64_t c = 0; c < columns; ++c) {
                        if (c < of_first_row + r) {
                            ASSERT_EQ(part.data[r * kKeyTile + c], whole.data[r * kKeyTile + c]) << where();
                        }
                        left_out += part.data[r * kKeyTile + c] == 1e30F ? 1 : 0;
                    }
                }
                if (kernels.few_value_rows > 0 && of_first_row == 1 && columns == kKeyTile) {
                    EXPECT_GT(left_out, rows * columns / 8) << where();
                }
                // Weights that are 0 past the diagonal, over values and over queries.
                const Room<float> weights(kQueryTile * kKeyTile), rounded(kQueryTile * kKeyTile),
                    packed_weights(kQueryTile * kKeyTile);
                for (std::int64_t at = 0; at < kQueryTile * kKeyTile; ++at) {
                    const std::int64_t r = at / kKeyTile, c = at % kKeyTile;
                    weights.data[at] = r < rows && c < columns && c < of_first_row + r
                                           ? static_cast<float>((at * 13) % 29) / 8.0F
                                           : 0.0F;
                }
                std::copy_n(weights.data, kQueryTile * kKeyTile, rounded.data);
                kernels.round_weights(rounded.data, kQueryTile);
                const std::int64_t size = kQueryTile * padded(width);
                const Room<float> sums(size), part_sums(size);
                const auto same = [&] { return std::equal(sums.data, sums.data + size, part_sums.data); };
                std::fill_n(sums.data, size, 3.0F);
                std::fill_n(part_sums.data, size, 3.0F);
                kernels.add_values(sums.data, rounded.data, values, rows, columns, width);
                kernels.add_values(part_sums.data, rounded.data, values, rows, met, width);
                EXPECT_TRUE(same()) << where();
                std::fill_n(sums.data, size, 0.0F);
                std::fill_n(part_sums.data, size, 0.0F);
                const float* over = kernels.pack_weights(packed_weights.data, weights.data, rows);
                kernels.add_over_queries(sums.data, over, query_sums, rows, columns, width);
                kernels.add_over_queries(part_sums.data, over, query_sums, rows, met, width);
                EXPECT_TRUE(same()) << where();
                if (kernels.few_value_rows == 0 || of_first_row != 1 || columns < 48 || rows < 48) {
                    continue;  // AMX multiplies whole tiles
                }
                // What is left out is not met: 0 × NaN would be NaN.
                const auto finite = [&](std::int64_t first, std::int64_t count) {
                    const float* from = part_sums.data + first * padded(width);
                    return std::all_of(from, from + count * padded(width), [](float x) { return std::isfinite(x); });
                };
                std::fill_n(b.data + 16 * padded(width), (columns - 16) * padded(width), std::nanf(""));
                values = kernels.pack_values(value_room.data, loaded(b.data, columns, width), width);
                std::fill_n(part_sums.data, size, 0.0F);
                kernels.add_values(part_sums.data, rounded.data, values, rows, met, width);
                EXPECT_TRUE(finite(0, 12)) << where();
                EXPECT_FALSE(finite(16, 1)) << where();
                std::fill_n(a.data, 16 * padded(width), std::nanf(""));
                query_sums = kernels.pack_query_sums(sum_room.data, a.data, rows, width);
                std::fill_n(part_sums.data, size, 0.0F);
                kernels.add_over_queries(part_sums.data, over, query_sums, rows, met, width);
                if (!kernels.sums_transposed) {
                    EXPECT_TRUE(finite(24, columns - 24)) << where();
                    EXPECT_FALSE(finite(0, 1)) << where();
                }
            }
        }
    }
}

}  // namespace
}  // namespace qkv::kernels
