// bf16 on AMX's tile registers; everything around the products on AVX-512.
//
// A tile register holds 16 rows of 64 bytes. TDPBF16PS multiplies 16 × 32 numbers by 32 × 16, the second given as 16
// rows of pairs (Intel SDM, volume 1, chapter 18):
//
//     c[m][n] += Σ p  a[m][2p] · b[p][2n] + a[m][2p + 1] · b[p][2n + 1]
//
// Blocks of 2 × 2 accumulators: four products for two and two loads. The operands are those of pairs-inl.hpp, with rows
// of queries and of keys filled up to 32 numbers.
#include <hwy/detect_targets.h>

#include <algorithm>
#include <span>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "kernels/pairs-inl.hpp"
#include "kernels/table-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileBytes = 64;
constexpr std::int64_t kPairs = 16;               // of 16-bit numbers in a row of a tile
constexpr std::int64_t kStep = 2 * kPairs;        // numbers along the inner dimension
constexpr std::int64_t kRowBytes = kKeyTile * 4;  // from one row of scores to the next

[[nodiscard]] constexpr std::int64_t steps_of(std::int64_t inner) { return (inner + kStep - 1) / kStep; }

/// Palette 1: eight tiles of 16 rows and 64 bytes.
struct alignas(64) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kConfig;

void Enter() { __asm__ volatile("ldtilecfg %0" ::"m"(kConfig)); }
void Leave() { __asm__ volatile("tilerelease" ::); }

// The instructions by name: compilers' own intrinsics do not say which memory they read.
template <int kTile>
HWY_INLINE void LoadTile(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
}
template <int kTile>
HWY_INLINE void StoreTile(void* to, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
}
template <int kTile>
HWY_INLINE void ZeroTile() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kC, int kA, int kB>
HWY_INLINE void MultiplyTiles() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

/// Where a matrix of tiles lies, in bytes: the next block of 16 rows, the next step along the inner dimension (or the
/// next block of columns), and the next row within a tile.
struct Tiles {
    const std::byte* data;
    std::int64_t next_block;
    std::int64_t next_step;
    std::int64_t next_row;
};

/// A product of `steps` along the inner dimension.
struct TileProduct {
    Tiles a;
    Tiles b;
    std::int64_t steps;
};

/// c (16 kRows, 16 kColumns) ← or += the products' sum. Tiles 0 to 3 hold c, 4 and 5 a, 6 and 7 b. The block begins at
/// tile (row, column) of all of them.
template <bool kAdd, int kRows, int kColumns>
void MultiplyTileBlock(float* c, std::int64_t c_stride, std::span<const TileProduct> products, std::int64_t row,
                       std::int64_t column) {
    const std::int64_t c_row = c_stride * 4;
    c += row * kTileRows * c_stride + column * kPairs;
    float* below = c + kTileRows * c_stride;
    const auto start = [&]<int kTile>(const float* from)
                           HWY_ATTR { kAdd ? LoadTile<kTile>(from, c_row) : ZeroTile<kTile>(); };
    start.template operator()<0>(c);
    if constexpr (kColumns > 1) {
        start.template operator()<1>(c + kPairs);
    }
    if constexpr (kRows > 1) {
        start.template operator()<2>(below);
    }
    if constexpr (kRows > 1 && kColumns > 1) {
        start.template operator()<3>(below + kPairs);
    }
    for (const auto& [a, b, steps] : products) {
        const std::byte* a_at = a.data + row * a.next_block;
        const std::byte* b_at = b.data + column * b.next_block;
        for (std::int64_t step = 0; step < steps; ++step, a_at += a.next_step, b_at += b.next_step) {
            LoadTile<4>(a_at, a.next_row);
            LoadTile<6>(b_at, b.next_row);
            MultiplyTiles<0, 4, 6>();
            if constexpr (kColumns > 1) {
                LoadTile<7>(b_at + b.next_block, b.next_row);
                MultiplyTiles<1, 4, 7>();
            }
            if constexpr (kRows > 1) {
                LoadTile<5>(a_at + a.next_block, a.next_row);
                MultiplyTiles<2, 5, 6>();
            }
            if constexpr (kRows > 1 && kColumns > 1) {
                MultiplyTiles<3, 5, 7>();
            }
        }
    }
    StoreTile<0>(c, c_row);
    if constexpr (kColumns > 1) {
        StoreTile<1>(c + kPairs, c_row);
    }
    if constexpr (kRows > 1) {
        StoreTile<2>(below, c_row);
    }
    if constexpr (kRows > 1 && kColumns > 1) {
        StoreTile<3>(below + kPairs, c_row);
    }
}

/// c (rows, width) in blocks of up to 2 × 2 tiles; rows are rounded up to whole tiles, width is a multiple of 16.
template <bool kAdd>
void MultiplyTileRows(float* c, std::int64_t c_stride, std::span<const TileProduct> products, std::int64_t rows,
                      std::int64_t width) {
    const std::int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
    const std::int64_t column_tiles = width / kPairs;
    const auto across = [&]<int kRows>(std::int64_t row) HWY_ATTR {
        std::int64_t column = 0;
        for (; column + 2 <= column_tiles; column += 2) {
            MultiplyTileBlock<kAdd, kRows, 2>(c, c_stride, products, row, column);
        }
        if (column < column_tiles) {
            MultiplyTileBlock<kAdd, kRows, 1>(c, c_stride, products, row, column);
        }
    };
    std::int64_t row = 0;
    for (; row + 2 <= row_tiles; row += 2) {
        across.template operator()<2>(row);
    }
    if (row < row_tiles) {
        across.template operator()<1>(row);
    }
}
template <bool kAdd>
void MultiplyTileRows(float* c, std::int64_t c_stride, const TileProduct& product, std::int64_t rows,
                      std::int64_t width) {
    MultiplyTileRows<kAdd>(c, c_stride, std::span(&product, 1), rows, width);
}

std::int64_t ValuePairRoom(std::int64_t width) { return kKeyTile / 2 * padded(width); }

const float* PackValuePairs(float* room, const Rows& rows, std::int64_t width) {
    PackRowPairs(room, rows, width, padded(width), kStep);
    return room;
}

/// queries · keysᵀ
[[nodiscard]] TileProduct KeyProduct(const float* queries, const float* keys, std::int64_t width) {
    const std::int64_t steps = steps_of(width);
    const std::int64_t query_bytes = steps * kTileBytes;
    return {{reinterpret_cast<const std::byte*>(queries), kTileRows * query_bytes, kTileBytes, query_bytes},
            {reinterpret_cast<const std::byte*>(keys), kTileBytes, kPairs * kRowBytes, kRowBytes},
            steps};
}

/// weights · values
[[nodiscard]] TileProduct ValueProduct(const float* weights, const float* values, std::int64_t columns,
                                       std::int64_t width) {
    const std::int64_t value_bytes = padded(width) * 4;
    return {{reinterpret_cast<const std::byte*>(weights), kTileRows * kRowBytes, kTileBytes, kRowBytes},
            {reinterpret_cast<const std::byte*>(values), kTileBytes, kPairs * value_bytes, value_bytes},
            steps_of(columns)};
}

/// Past the rows there is room for whole tiles, and nobody looks there.
void MultiplyPairs(float* scores, const float* queries, const float* keys, std::int64_t rows, Columns columns,
                   std::int64_t width, Ahead* /*ahead*/) {
    MultiplyTileRows<false>(scores, kKeyTile, KeyProduct(queries, keys, width), rows, padded(columns.all));
}

void AddPairedValues(float* context, const float* weights, const float* values, std::int64_t rows, Columns columns,
                     std::int64_t width) {
    MultiplyTileRows<true>(context, padded(width), ValueProduct(weights, values, columns.all, width), rows,
                           padded(width));
}

// Backward. The tile unit sums over its left operand's columns, which here are queries: dVᵀ += dOᵀ · P and dKᵀ += Qᵀ ·
// dS take P and dS as pairs of rows, and dO and Q transposed, once for all the keys that they meet.
//
//     columns  (Dv, 64)       dOᵀ, 16 bits; two steps of 32 queries
//     pairs    (32, 64)       pairs of queries; b[p][2n] from row 2p, b[p][2n + 1] from row 2p + 1

std::int64_t ColumnRoom(std::int64_t width) { return padded(width) * kQueryTile / 2; }

const float* PackColumns(float* room, const float* rows, std::int64_t count, std::int64_t width) {
    const hn::FixedTag<float, 4> d;
    const hn::FixedTag<std::uint32_t, 4> du;
    const std::int64_t across = padded(width);
    const auto pair_at = [&](std::int64_t pair, std::int64_t i) HWY_ATTR {
        const float* first = rows + 2 * pair * across + i;
        const auto second = 2 * pair + 1 < count ? hn::Load(d, first + across) : hn::Zero(d);
        return hn::BitCast(d, hn::Or(hn::ShiftRight<16>(hn::BitCast(du, hn::Load(d, first))),
                                     hn::And(hn::BitCast(du, second), hn::Set(du, 0xFFFF0000U))));
    };
    TransposeFloats(room, kQueryTile / 2, kQueryTile / 2, (count + 1) / 2, across, pair_at, nullptr);
    return room;
}

void AddOverPairs(float* sums, const float* weights, const float* packed, std::int64_t rows, Columns /*columns*/,
                  std::int64_t width) {
    constexpr std::int64_t kColumnBytes = kQueryTile * 2;
    const TileProduct product{
        {reinterpret_cast<const std::byte*>(packed), kTileRows * kColumnBytes, kTileBytes, kColumnBytes},
        {reinterpret_cast<const std::byte*>(weights), kTileBytes, kPairs * kRowBytes, kRowBytes},
        steps_of(rows)};
    MultiplyTileRows<true>(sums, kKeyTile, product, padded(width), kKeyTile);
}

const float* SumsTransposed(float* room, const float* sums, std::int64_t width) {
    const std::int64_t across = padded(width);
    const auto four_at = [&](std::int64_t row, std::int64_t i)
                             HWY_ATTR { return hn::Load(hn::FixedTag<float, 4>(), sums + row * kKeyTile + i); };
    TransposeFloats(room, across, across, across, kKeyTile, four_at, nullptr);
    return room;
}

/// Whether soften would move the reference of any row.
bool AnyMoves(const float* scores, float scale, const float* reference, std::int64_t rows) {
    const Tag<float> d;
    const auto factor = hn::Set(d, scale);
    __mmask16 moved = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
        auto largest = hn::Load(d, scores + r * kKeyTile);
        for (std::int64_t c = kWidth<float>; c < kKeyTile; c += kWidth<float>) {
            largest = hn::Max(largest, hn::Load(d, scores + r * kKeyTile + c));
        }
        const auto limit = hn::Set(d, reference[r] + SoftmaxRows<float>::kSlack);
        moved = _kor_mask16(moved, _mm512_cmp_ps_mask(hn::Mul(largest, factor).raw, limit.raw, _CMP_GT_OQ));
    }
    return moved != 0;
}

/// Tiles of keys in three phases: all products of queries and keys, all softmaxes, all weights times values. The
/// unit changes hands three times instead of twelve, and blocks of the context stay in tiles over all the keys. Only
/// where a row's reference moves, what its context has not taken in yet is taken in before.
void AttendInPhases(const AttendedRows<float>& rows, const AttendedKeys<float>* tiles, std::int64_t count,
                    float* scores) {
    constexpr std::int64_t kTile = kQueryTile * kKeyTile;
    const std::int64_t across = padded(rows.value_dim);
    TileProduct products[kMostAttended];
    for (std::int64_t i = 0; i < count; ++i) {
        MultiplyPairs(scores + i * kTile, rows.queries, tiles[i].keys, rows.rows, tiles[i].columns, rows.head_dim,
                      nullptr);
        products[i] = ValueProduct(scores + i * kTile, tiles[i].values, tiles[i].columns.all, rows.value_dim);
    }
    std::int64_t taken = 0;
    const auto take = [&](std::int64_t until) HWY_ATTR {
        MultiplyTileRows<true>(
            rows.context, across,
            std::span(products).subspan(static_cast<std::size_t>(taken), static_cast<std::size_t>(until - taken)),
            rows.rows, across);
        taken = until;
    };
    for (std::int64_t i = 0; i < count; ++i) {
        float* at = scores + i * kTile;
        if (rows.finish.apply != nullptr) {
            rows.finish.apply(rows.finish.with, i, at);
        }
        if (i > taken && AnyMoves(at, rows.scale, rows.softmax.reference, rows.rows)) {
            take(i);
        }
        Soften<float, CoarseWeights>(at, at, rows.scale, nullptr, rows.softmax, rows.context, rows.value_dim, rows.rows,
                                     kKeyTile);
    }
    take(count);
}

constexpr Kernels<float> MakeBf16Table() {
    Kernels<float> table = MakeTable<float>();
    table.enter = Enter;
    table.leave = Leave;
    table.scales_queries = false;
    table.query_room = QueryPairRoom<kStep>;
    table.key_room = KeyPairRoom<kStep>;
    table.value_room = ValuePairRoom;
    table.packs = PacksStored;
    table.pack_queries = PackQueryPairs<kStep, kTileRows>;
    table.pack_keys = PackKeyPairs<kStep>;
    table.pack_values = PackValuePairs;
    table.multiply_keys = MultiplyPairs;
    table.add_values = AddPairedValues;
    table.few_key_rows = 0;
    table.few_value_rows = 0;
    table.attended_scores = kMostAttended;
    table.attend = AttendInPhases;
    table.round_weights = RoundRows;
    table.pack_weights = PackRoundedPairs;
    table.query_sum_room = ColumnRoom;
    table.pack_query_sums = PackColumns;
    table.add_over_queries = AddOverPairs;
    table.sums_transposed = true;
    table.sums_as_rows = SumsTransposed;
    table.soften = Soften<float, CoarseWeights>;
    table.weigh = Weigh<float, CoarseWeights>;
    table.score_gradients = ScoreGradients<float, CoarseWeights>;
    return table;
}

}  // namespace

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

namespace qkv::kernels {

constinit const Kernels<float> amx_bf16_table = HWY_NAMESPACE::MakeBf16Table();

}  // namespace qkv::kernels
