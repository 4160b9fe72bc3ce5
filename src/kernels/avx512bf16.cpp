// bf16 on AVX512-BF16's products of pairs, twice as many multiply-adds an instruction as float32's; the walks are those
// of multiply-inl.hpp, and all that is not bf16 is AVX-512's.
#include <hwy/detect_targets.h>

#include "kernels/tables.hpp"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "kernels/pairs-inl.hpp"
#include "kernels/table-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

namespace {

constexpr std::int64_t kStep = kLanes;
constexpr std::int64_t kPairPanel = kPanel<float>;
static_assert(kPairPanel == kKeyTile);  // packed keys are one panel

/// How pairs of kKeyTile, or kQueryTile, rows lie.
static_assert(kQueryTile == kKeyTile);
[[nodiscard]] Right<Pair> PanelsOf(const float* packed) {
    return {Pairs(packed), kPairPanel, kKeyTile / 2 * kPairPanel};
}
std::int64_t RowPairRoom(std::int64_t width) {
    return kKeyTile / 2 * ((width + kPairPanel - 1) / kPairPanel * kPairPanel);
}

const float* PackValuePairs(float* room, const Rows& rows, std::int64_t width) {
    PackRowPairs(room, rows, width, kPairPanel, 2);
    return room;
}
const float* PackQuerySums(float* room, const float* rows, std::int64_t count, std::int64_t width) {
    return PackValuePairs(room, loaded(rows, count, width), width);
}

void MultiplyPairs(float* scores, const float* queries, const float* keys, std::int64_t rows, Columns columns,
                   std::int64_t width, Ahead* ahead) {
    const std::int64_t pairs = pairs_of<kStep>(width);
    ForRowBlocks(columns, rows, [&](std::int64_t first, std::int64_t count, std::int64_t here) HWY_ATTR {
        Multiply(scores + first * kKeyTile, kKeyTile, Left<Pair>{Pairs(queries) + first * pairs, pairs, 1},
                 Right<Pair>{Pairs(keys), kPairPanel, 0}, count, pairs, padded(here), ahead);
    });
}

bool TakesStoredKeyPairs(const Rows& keys, std::int64_t width) {
    return keys.dtype == DType::bf16 && width % kStep == 0;
}

void MultiplyStoredPairs(float* scores, const float* queries, std::int64_t first, const Rows& keys, std::int64_t rows,
                         std::int64_t width, Ahead* ahead) {
    MultiplyStored(scores + first, Left<Pair>{Pairs(queries), pairs_of<kStep>(width), 1},
                   StoredKeys<BFloat16>{reinterpret_cast<const BFloat16*>(keys.data), keys.stride, keys.rows}, rows,
                   width, ahead);
}

void AddPairedValues(float* context, const float* weights, const float* values, std::int64_t rows, Columns columns,
                     std::int64_t width) {
    ForRowBlocks(columns, rows, [&](std::int64_t first, std::int64_t count, std::int64_t here) HWY_ATTR {
        MultiplyAdd(context + first * padded(width), padded(width),
                    Left<Pair>{Pairs(weights) + first * kKeyTile, kKeyTile, 1}, PanelsOf(values), count, (here + 1) / 2,
                    padded(width));
    });
}

/// Whole vectors, and no pair in two runs.
bool TakesStoredPairs(const Rows& values, std::int64_t width, bool last) {
    return values.dtype == DType::bf16 && width == padded(width) && (last || values.rows % 2 == 0);
}

void AddStoredPairs(float* context, const float* weights, std::int64_t first, const Rows& values, std::int64_t rows,
                    std::int64_t width, Ahead* ahead) {
    assert(first % 2 == 0 && 1 <= rows && rows <= kFewValueRows);
    OfStored(values, [&]<class T>(const T* from) HWY_ATTR {
        const std::int64_t pairs = values.rows / 2;
        const Left<Pair> left{Pairs(weights) + first / 2, kKeyTile, 1};
        const auto add = [&]<class Met>(const Met* met, std::int64_t at, std::int64_t count) HWY_ATTR {
            MultiplyAndAsk<float, true, 8>(context, padded(width), Left<Pair>{left.data + at, left.row_step, 1},
                                           Right<Met>{met, values.stride, kPanel<float>}, rows, count, padded(width),
                                           blocks_of<kBlockRows>(rows), ahead);
        };
        if (pairs > 0) {
            add(from, 0, pairs);
        }
        if (values.rows % 2 != 0) {
            add(reinterpret_cast<const Alone<T>*>(from + 2 * pairs * values.stride), pairs, 1);
        }
    });
}

void AddOverPairs(float* sums, const float* weights, const float* packed, std::int64_t rows, Columns columns,
                  std::int64_t width) {
    ForColumnBlocks(columns, rows, [&](std::int64_t first, std::int64_t count, std::int64_t from) HWY_ATTR {
        MultiplyAdd(sums + first * padded(width), padded(width),
                    Left<Pair>{Pairs(weights) + from / 2 * kKeyTile + first, 1, kKeyTile},
                    PanelsOf(packed + from / 2 * kPairPanel), count, (rows - from + 1) / 2, padded(width));
    });
}

void Attend(const AttendedRows<float>& rows, const AttendedKeys<float>* tiles, std::int64_t count, float* scores) {
    for (std::int64_t at = 0; at < count; ++at) {
        const AttendedKeys<float>& tile = tiles[at];
        if (tile.keys != nullptr) {
            MultiplyPairs(scores, rows.queries, tile.keys, rows.rows, tile.columns, rows.head_dim, tile.ahead);
        } else {
            MultiplyStoredPairs(scores, rows.queries, 0, tile.stored_keys, rows.rows, rows.head_dim, tile.ahead);
        }
        if (rows.finish.apply != nullptr) {
            rows.finish.apply(rows.finish.with, at, scores);
        }
        Soften<float, CoarseWeights>(scores, scores, rows.scale, nullptr, rows.softmax, rows.context, rows.value_dim,
                                     rows.rows, tile.columns.all);
        if (tile.values != nullptr) {
            AddPairedValues(rows.context, scores, tile.values, rows.rows, tile.columns, rows.value_dim);
        } else {
            AddStoredToBlocks(rows, tile, scores, AddStoredPairs);
        }
    }
}

constexpr Kernels<float> MakeBf16Table() {
    Kernels<float> table = MakeTable<float>();
    table.scales_queries = false;
    table.query_room = QueryPairRoom<kStep>;
    table.key_room = KeyPairRoom<kStep>;
    table.value_room = RowPairRoom;
    table.packs = PacksStored;
    table.pack_queries = PackQueryPairs<kStep, 1>;
    table.pack_keys = PackKeyPairs<kStep>;
    table.pack_values = PackValuePairs;
    table.multiply_keys = MultiplyPairs;
    table.add_values = AddPairedValues;
    table.takes_stored_keys = TakesStoredKeyPairs;
    table.multiply_stored_keys = MultiplyStoredPairs;
    table.takes_stored_values = TakesStoredPairs;
    table.add_stored_values = AddStoredPairs;
    table.attend = Attend;
    table.round_weights = RoundRows;
    table.pack_weights = PackRoundedPairs;
    table.query_sum_room = RowPairRoom;
    table.pack_query_sums = PackQuerySums;
    table.add_over_queries = AddOverPairs;
    table.soften = Soften<float, CoarseWeights>;
    table.weigh = Weigh<float, CoarseWeights>;
    table.score_gradients = ScoreGradients<float, CoarseWeights>;
    return table;
}

}  // namespace

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

namespace qkv::kernels {

constinit const Kernels<float> avx512_bf16_table = HWY_NAMESPACE::MakeBf16Table();

}  // namespace qkv::kernels
