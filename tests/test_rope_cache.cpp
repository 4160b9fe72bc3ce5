// Keys that are turned as they are appended to a cache: what the blocks hold, and what is refused.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "qkv/kv_cache.hpp"
#include "qkv/rope.hpp"
#include "support/expect_error.hpp"
#include "support/small.hpp"
#include "support/stored.hpp"

namespace qkv {
namespace {

using support::Random;
using support::Stored;

constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kHeadDim = 6;
constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};

/// Keys (or values) of every held token of a sequence, [tokens][heads][head_dim].
std::vector<double> held(const KvCache& cache, SequenceId sequence, bool values) {
    std::vector<double> all;
    const auto blocks = static_cast<std::int64_t>(cache.block_table(sequence).size());
    for (std::int64_t index = 0; index < blocks; ++index) {
        const KvBlock block = cache.block(sequence, index);
        const Shape4 shape{1, kHeads, block.tokens, kHeadDim};
        const std::int64_t head = cache.block_tokens() * kHeadDim;
        const std::vector<double> read =
            support::read({values ? block.values : block.keys, block.dtype, shape, {kHeads * head, head, kHeadDim, 1}});
        for (std::int64_t token = 0; token < block.tokens; ++token) {
            for (std::int64_t h = 0; h < kHeads; ++h) {
                const auto* row = read.data() + (h * block.tokens + token) * kHeadDim;
                all.insert(all.end(), row, row + kHeadDim);
            }
        }
    }
    return all;
}

/// Keys turned by the public call, first in the type of computation, then rounded to the cache's.
std::vector<double> turned_then_rounded(const Rope& rope, const Stored& k, std::int64_t start, DType dtype) {
    const Shape4 shape = k.view.shape;
    const Stored turned = support::allocate(shape, k.view.dtype == DType::f64 ? DType::f64 : DType::f32);
    rope.apply(k.view, turned.view, {.start = start});
    const Stored rounded = support::allocate(shape, dtype);
    support::write(rounded.view, support::read(turned.view));
    const std::vector<double> values = support::read(rounded.view);
    std::vector<double> by_token;
    for (std::int64_t token = 0; token < shape[2]; ++token) {
        for (std::int64_t head = 0; head < kHeads; ++head) {
            const auto* row = values.data() + (head * shape[2] + token) * kHeadDim;
            by_token.insert(by_token.end(), row, row + kHeadDim);
        }
    }
    return by_token;
}

TEST(RopeOnAppend, TurnsEachKeyAtItsPositionAndRoundsItOnce) {
    Random random(1);
    for (const DType stored : {DType::f32, DType::bf16, DType::f16}) {
        for (const DType given : {DType::f32, DType::bf16, DType::f16}) {
            SCOPED_TRACE(std::string(name(given)) + " into " + name(stored));
            const Rope rope({.rotary_dim = 4, .scaling = RopeYarn{.factor = 4, .original_context = 16}}, kHeadDim);
            KvCache cache = KvCache::paged({.kv_heads = kHeads, .head_dim = kHeadDim, .dtype = stored},
                                           {.blocks = 8, .block_tokens = 16});
            const SequenceId sequence = cache.add();
            std::vector<double> expected;
            for (const std::int64_t tokens : {7, 1, 20, 1, 3}) {
                const Shape4 shape{1, kHeads, tokens, kHeadDim};
                const Stored k = support::allocate(shape, given, support::pick_layout(random));
                const Stored v = support::allocate(shape, given, support::pick_layout(random));
                support::write(k.view, support::normals(random, kHeads * tokens * kHeadDim, given));
                support::write(v.view, support::normals(random, kHeads * tokens * kHeadDim, given));
                const auto more = turned_then_rounded(rope, k, cache.size(sequence), stored);
                expected.insert(expected.end(), more.begin(), more.end());
                cache.append({.sequences = {&sequence, 1}}, k.view, v.view, rope);
            }
            EXPECT_EQ(held(cache, sequence, false), expected);
        }
    }
}

TEST(RopeOnAppend, LeavesValuesAsTheyAre) {
    Random random(2);
    for (const DType dtype : kTypes) {
        const std::vector<double> numbers = support::normals(random, 5 * kHeads * kHeadDim, dtype);
        const Stored tokens = support::allocate({1, kHeads, 5, kHeadDim}, dtype);
        support::write(tokens.view, numbers);
        const KvLayout layout{.kv_heads = kHeads, .head_dim = kHeadDim, .dtype = dtype};
        KvCache turned = KvCache::contiguous(layout, {.capacity = 8});
        KvCache plain = KvCache::contiguous(layout, {.capacity = 8});
        const SequenceId a = turned.add();
        const SequenceId b = plain.add();
        turned.append({.sequences = {&a, 1}}, tokens.view, tokens.view, Rope({}, kHeadDim));
        plain.append({.sequences = {&b, 1}}, tokens.view, tokens.view);
        EXPECT_EQ(held(turned, a, true), held(plain, b, true));
        EXPECT_NE(held(turned, a, false), held(plain, b, false));
    }
}

TEST(RopeOnAppend, AnF64CacheTurnsInF64) {
    Random random(3);
    const Stored tokens = support::allocate({1, kHeads, 5, kHeadDim}, DType::f64);
    support::write(tokens.view, support::normals(random, 5 * kHeads * kHeadDim, DType::f64));
    const Rope rope({}, kHeadDim);
    KvCache cache =
        KvCache::contiguous({.kv_heads = kHeads, .head_dim = kHeadDim, .dtype = DType::f64}, {.capacity = 8});
    const SequenceId sequence = cache.add();
    cache.append({.sequences = {&sequence, 1}}, tokens.view, tokens.view, rope);
    EXPECT_EQ(held(cache, sequence, false), turned_then_rounded(rope, tokens, 0, DType::f64));
}

TEST(RopeOnAppend, PositionsGoOnInARingAndDifferInABatch) {
    Random random(4);
    const Rope rope({}, kHeadDim);
    KvCache ring = KvCache::windowed({.kv_heads = kHeads, .head_dim = kHeadDim},
                                     {.window = 16, .sequences = 2, .block_tokens = 16});
    const std::vector<SequenceId> sequences{ring.add(), ring.add()};
    const Stored tokens = support::allocate({1, kHeads, 50, kHeadDim}, DType::f32);
    support::write(tokens.view, support::normals(random, 50 * kHeads * kHeadDim, DType::f32));
    // 47 tokens for the one, 3 for the other, packed.
    const std::vector<std::int64_t> ends{0, 47, 50};
    const CacheBatch batch{.sequences = sequences, .cumulative_tokens = ends};
    std::vector<std::int64_t> positions = ring.next_positions(batch, tokens.view);
    ASSERT_EQ(positions.size(), 50U);
    EXPECT_EQ(positions[46], 46);
    EXPECT_EQ(positions[47], 0);
    ring.append(batch, tokens.view, tokens.view, rope);
    const Stored turned = support::allocate({1, kHeads, 50, kHeadDim}, DType::f32);
    rope.apply(tokens.view, turned.view, {.each = positions});
    const std::vector<double> expected = support::read(turned.view);
    const auto expect_tokens = [&](SequenceId sequence, std::int64_t first, std::int64_t last) {
        const std::vector<double> got = held(ring, sequence, false);
        for (std::int64_t token = first; token < last; ++token) {
            for (std::int64_t i = 0; i < kHeads * kHeadDim; ++i) {
                const std::int64_t at = (i / kHeadDim * 50 + token) * kHeadDim + i % kHeadDim;
                EXPECT_EQ(got[static_cast<std::size_t>((token - first) * kHeads * kHeadDim + i)],
                          expected[static_cast<std::size_t>(at)])
                    << "token " << token;
            }
        }
    };
    expect_tokens(sequences[0], ring.first(sequences[0]), 47);
    expect_tokens(sequences[1], 47, 50);
    const Stored one = support::allocate({2, kHeads, 2, kHeadDim}, DType::f32);
    positions = ring.next_positions({.sequences = sequences}, one.view);
    EXPECT_EQ(positions, (std::vector<std::int64_t>{47, 48, 3, 4}));
}

TEST(RopeOnAppendErrors, NothingIsAppended) {
    KvCache cache = KvCache::paged({.kv_heads = 1, .head_dim = 4}, {.blocks = 2, .block_tokens = 16});
    const SequenceId sequence = cache.add();
    const CacheBatch batch{.sequences = {&sequence, 1}};
    std::vector<float> numbers(64, 0.5F);
    const auto tokens = [&](std::int64_t count) { return view(numbers.data(), {1, 1, count, 4}); };
    const auto refused = [&](std::int64_t count, const Rope& rope, ErrorCode code, const char* part) {
        SCOPED_TRACE(part);
        EXPECT_ERROR(cache.append(batch, tokens(count), tokens(count), rope), code, part);
        EXPECT_EQ(cache.size(sequence), 0);
        EXPECT_EQ(cache.free_blocks(), 2);
    };
    refused(1, Rope({}, 6), ErrorCode::shape_mismatch, "rope has head_dim 6; expected 4");
    const auto table = view(numbers.data(), {1, 1, 5, 2});
    const Rope five = Rope::from_tables(table, table, 4, RopePairing::half_split);
    refused(6, five, ErrorCode::out_of_range, "would grow to 6 tokens; expected at most 5");
    const Rope dynamic({.scaling = RopeDynamicNtk{2.0, 5}}, 4);
    refused(6, dynamic, ErrorCode::unsupported, "past the original_context");
    cache.append(batch, tokens(5), tokens(5), five);
    cache.append(batch, tokens(0), tokens(0), dynamic);
    EXPECT_EQ(cache.size(sequence), 5);
    EXPECT_ERROR(cache.append(batch, tokens(1), tokens(1), five), ErrorCode::out_of_range, "would grow to 6");
    EXPECT_ERROR((void)cache.next_positions(batch, view(numbers.data(), {2, 1, 1, 4})), ErrorCode::shape_mismatch,
                 "tokens has shape [2, 1, 1, 4]");
}

}  // namespace
}  // namespace qkv
