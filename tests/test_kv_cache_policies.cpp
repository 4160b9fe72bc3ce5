// What the three kinds of cache promise: copy on write, full pools, rings, one array per head; and bad input.
#include <gtest/gtest.h>

#include <set>

#include "qkv/kv_cache.hpp"
#include "support/cache_tokens.hpp"
#include "support/expect_error.hpp"

namespace qkv {
namespace {

using support::held_tokens;
using support::kDim;
using support::kHeads;
using support::layout_of;
using support::Random;
using support::random_tokens;
using support::Token;
using support::Tokens;

/// One cache and tokens to append to it.
struct Fixture {
    Random random{7};
    KvCache cache;

    explicit Fixture(KvCache made) : cache(std::move(made)) {}
    std::vector<Token> append(SequenceId id, std::int64_t count) {
        const std::vector<Token> tokens = random_tokens(random, count, DType::f32);
        const Tokens given(random, 1, tokens, DType::f32);
        cache.append({{&id, 1}}, given.k.view, given.v.view);
        return tokens;
    }
};

Fixture paged(std::int64_t blocks) {
    return Fixture(KvCache::paged(layout_of(DType::f32), {.blocks = blocks, .block_tokens = 16}));
}

TEST(KvCache, CopiesASharedBlockWhenItIsWritten) {
    Fixture f = paged(10);
    const SequenceId parent = f.cache.add();
    f.append(parent, 40);
    const SequenceId child = f.cache.fork(parent, 36);
    const std::vector<std::int64_t> parents = f.cache.block_table(parent);
    EXPECT_EQ(f.cache.block_table(child), parents);
    EXPECT_EQ(f.cache.shared_blocks(), 3);
    EXPECT_EQ(f.cache.free_blocks(), 7);
    const std::vector<Token> before = held_tokens(f.cache, parent);

    const std::vector<Token> added = f.append(child, 1);
    EXPECT_EQ(f.cache.shared_blocks(), 2);
    EXPECT_EQ(f.cache.free_blocks(), 6);
    EXPECT_EQ(f.cache.block_table(parent), parents);
    EXPECT_EQ(f.cache.block_table(child)[1], parents[1]);
    EXPECT_NE(f.cache.block_table(child)[2], parents[2]);
    EXPECT_EQ(held_tokens(f.cache, parent), before) << "the child's append has changed its parent";
    std::vector<Token> expected(before.begin(), before.begin() + 36);
    expected.insert(expected.end(), added.begin(), added.end());
    EXPECT_EQ(held_tokens(f.cache, child), expected);

    f.append(parent, 1);  // its last block is its own again
    EXPECT_EQ(f.cache.free_blocks(), 6);
    f.cache.remove(parent);
    EXPECT_EQ(held_tokens(f.cache, child), expected);
    EXPECT_EQ(f.cache.shared_blocks(), 0);
    EXPECT_EQ(f.cache.free_blocks(), 7);
}

TEST(KvCache, AFullPoolLeavesAllAsItWas) {
    Fixture f = paged(4);
    const SequenceId ids[] = {f.cache.add(), f.cache.add()};
    f.append(ids[0], 20);
    f.append(ids[1], 16);
    const std::vector<Token> first = held_tokens(f.cache, ids[0]);
    const std::vector<Token> second = held_tokens(f.cache, ids[1]);
    // The first sequence alone would fit.
    const std::vector<Token> tokens = random_tokens(f.random, 34, DType::f32);
    const Tokens given(f.random, 2, tokens, DType::f32);
    EXPECT_ERROR(f.cache.append({ids}, given.k.view, given.v.view), ErrorCode::out_of_memory,
                 "append needs 3 more blocks of 16 tokens; 1 of 4 are free");
    EXPECT_EQ(held_tokens(f.cache, ids[0]), first);
    EXPECT_EQ(held_tokens(f.cache, ids[1]), second);
    EXPECT_EQ(f.cache.free_blocks(), 1);
    f.append(ids[0], 12);  // what fits still fits
    // Both share a half-full block, and one block is free: the first to write copies it, the second has it to itself.
    f.cache.truncate(ids[0], 20);
    const SequenceId fork = f.cache.fork(ids[0]);
    const SequenceId both[] = {ids[0], fork};
    const Tokens one_each(f.random, 2, random_tokens(f.random, 2, DType::f32), DType::f32);
    EXPECT_NO_THROW(f.cache.append({both}, one_each.k.view, one_each.v.view));
    EXPECT_EQ(f.cache.free_blocks(), 0);
}

TEST(KvCache, ARingKeepsItsWindowAndForgetsTheRest) {
    Fixture f(KvCache::windowed(layout_of(DType::f32), {.window = 40, .max_append = 8, .block_tokens = 16}));
    const SequenceId id = f.cache.add();
    std::vector<Token> all;
    for (int step = 0; step < 60; ++step) {
        const std::vector<Token> added = f.append(id, 8);
        all.insert(all.end(), added.begin(), added.end());
        const auto size = static_cast<std::int64_t>(all.size());
        ASSERT_LE(f.cache.first(id), std::max<std::int64_t>(0, size - 48));
        ASSERT_GE(f.cache.first(id), size - 48 - 16) << "more than a block too many";
        ASSERT_EQ(held_tokens(f.cache, id), std::vector<Token>(all.begin() + f.cache.first(id), all.end()));
        f.cache.truncate(id, size - 8);  // what was just appended can be taken back
        const std::vector<Token> again = f.append(id, 8);
        std::copy(again.begin(), again.end(), all.end() - 8);
    }
    EXPECT_EQ(f.cache.size(id), 480);
    EXPECT_EQ(f.cache.blocks() - f.cache.free_blocks(), static_cast<std::int64_t>(f.cache.block_table(id).size()));
    EXPECT_ERROR(f.cache.truncate(id, 400), ErrorCode::out_of_range,
                 "tokens is 400; the ring holds positions from 416");
    EXPECT_ERROR(f.cache.fork(id, 400), ErrorCode::out_of_range, "tokens is 400");
    // An append longer than the ring leaves its end.
    const std::vector<Token> long_one = f.append(id, 300);
    const std::int64_t first = f.cache.first(id);
    EXPECT_EQ(held_tokens(f.cache, id), std::vector<Token>(long_one.begin() + (first - 480), long_one.end()));
    f.cache.reset(id);
    EXPECT_EQ(f.cache.size(id), 0);
    EXPECT_EQ(f.cache.first(id), 0);
    EXPECT_EQ(f.cache.free_blocks(), f.cache.blocks());
}

TEST(KvCache, ContiguousKeysOfAHeadAreOneArray) {
    Fixture f(KvCache::contiguous(layout_of(DType::f32), {.capacity = 100}));
    const SequenceId id = f.cache.add();
    const std::vector<Token> tokens = f.append(id, 70);
    ASSERT_EQ(f.cache.block_table(id).size(), 1U);
    const KvBlock block = f.cache.block(id, 0);
    EXPECT_EQ(block.tokens, 70);
    for (std::int64_t h = 0; h < kHeads; ++h) {
        for (std::int64_t t = 0; t < 70; ++t) {
            for (std::int64_t d = 0; d < kDim; ++d) {
                ASSERT_EQ(
                    static_cast<const float*>(block.keys)[(h * 100 + t) * kDim + d],
                    static_cast<float>(tokens[static_cast<std::size_t>(t)][static_cast<std::size_t>(h * kDim + d)]));
            }
        }
    }
}

// Memory is used again, ids are not: one from a cache that is no more means nothing to the next.
TEST(KvCache, NoTwoCachesGiveTheSameId) {
    std::set<SequenceId> ids;
    for (int cache = 0; cache < 16; ++cache) {
        ids.insert(KvCache::paged({.kv_heads = 1, .head_dim = 4}, {.blocks = 1}).add());
    }
    EXPECT_EQ(ids.size(), 16U);
}

TEST(KvCache, NamesWhatIsWrong) {
    const KvLayout good = layout_of(DType::f32);
    const auto spoilt = [&](auto change) {
        KvLayout layout = good;
        change(layout);
        return layout;
    };
    const auto layout_error = [&](auto change, const char* message) {
        EXPECT_ERROR(KvCache::paged(spoilt(change), {.blocks = 1}), ErrorCode::invalid_argument, message);
    };
    layout_error([](KvLayout& l) { l.kv_heads = 0; }, "kv_heads is 0");
    layout_error([](KvLayout& l) { l.head_dim = -1; }, "head_dim is -1");
    layout_error([](KvLayout& l) { l.value_dim = 65537; }, "value_dim is 65537");
    EXPECT_ERROR(KvCache::paged(spoilt([](KvLayout& l) { l.dtype = DType::boolean; }), {.blocks = 1}),
                 ErrorCode::unsupported, "dtype is bool");
    EXPECT_ERROR(KvCache::paged(good, {.blocks = 0}), ErrorCode::invalid_argument, "blocks is 0");
    EXPECT_ERROR(KvCache::paged(good, {.blocks = 1, .block_tokens = 48}), ErrorCode::invalid_argument,
                 "block_tokens is 48");
    EXPECT_ERROR(KvCache::paged(good, {.blocks = 1, .block_tokens = 8}), ErrorCode::invalid_argument,
                 "block_tokens is 8");
    EXPECT_ERROR(KvCache::windowed(good, {.window = 0}), ErrorCode::invalid_argument, "window is 0");
    EXPECT_ERROR(KvCache::windowed(good, {.window = 4, .max_append = 0}), ErrorCode::invalid_argument,
                 "max_append is 0");
    EXPECT_ERROR(KvCache::contiguous(good, {.capacity = 0}), ErrorCode::invalid_argument, "capacity is 0");
    EXPECT_ERROR(KvCache::contiguous(good, {.capacity = std::int64_t{1} << 50}), ErrorCode::out_of_range, "KvCache");
    EXPECT_ERROR(KvCache::paged(good, {.blocks = std::int64_t{1} << 57}), ErrorCode::out_of_range, "KvCache");

    Fixture f = paged(8);
    KvCache other = KvCache::paged(good, {.blocks = 1});
    const SequenceId id = f.cache.add();
    const SequenceId foreign = other.add();
    const SequenceId removed = f.cache.add();
    f.cache.remove(removed);
    f.append(id, 5);
    for (const SequenceId wrong : {removed, foreign, SequenceId{-1}, SequenceId{0}}) {
        EXPECT_ERROR(f.cache.remove(wrong), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.fork(wrong), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.truncate(wrong, 0), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.reset(wrong), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.size(wrong), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.first(wrong), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.block_table(wrong), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.cache.block(wrong, 0), ErrorCode::invalid_argument, "sequence is");
        EXPECT_ERROR(f.append(wrong, 1), ErrorCode::invalid_argument, "sequences: one is");
    }
    EXPECT_ERROR(f.cache.truncate(id, 6), ErrorCode::out_of_range, "tokens is 6; expected 0 to 5");
    EXPECT_ERROR(f.cache.truncate(id, -1), ErrorCode::out_of_range, "tokens is -1");
    EXPECT_ERROR(f.cache.fork(id, 6), ErrorCode::out_of_range, "tokens is 6");
    EXPECT_ERROR(f.cache.block(id, 1), ErrorCode::out_of_range, "index is 1");
    EXPECT_ERROR(f.cache.block(id, -1), ErrorCode::out_of_range, "index is -1");

    const Tokens two(f.random, 2, random_tokens(f.random, 6, DType::f32), DType::f32);
    const SequenceId twice[] = {id, id};
    EXPECT_ERROR(f.cache.append({twice}, two.k.view, two.v.view), ErrorCode::invalid_argument, "is there twice");
    EXPECT_ERROR(f.cache.append({{&id, 1}}, two.k.view, two.v.view), ErrorCode::shape_mismatch,
                 "k has shape [2, 2, 3, 3]; expected a first size of 1");
    const auto append_error = [&](auto spoil, ErrorCode code, const char* message) {
        ConstTensorView k = two.k.view;
        ConstTensorView v = two.v.view;
        spoil(k, v);
        const SequenceId ids[] = {id, foreign};
        EXPECT_ERROR(f.cache.append({ids}, k, v), code, message);
    };
    append_error([](auto& k, auto&) { k.shape[3] = 2; }, ErrorCode::shape_mismatch, "k has shape [2, 2, 3, 2]");
    append_error([](auto& k, auto&) { k.shape[1] = 1; }, ErrorCode::shape_mismatch, "k has shape [2, 1, 3, 3]");
    append_error([](auto&, auto& v) { v.shape[2] = 2; }, ErrorCode::shape_mismatch, "v has shape [2, 2, 2, 5]");
    append_error([](auto&, auto& v) { v.dtype = DType::boolean; }, ErrorCode::unsupported, "v has type bool");
    append_error([](auto&, auto& v) { v.dtype = DType::bf16; }, ErrorCode::unsupported, "v has type bf16");
    append_error([](auto& k, auto&) { k.data = nullptr; }, ErrorCode::invalid_argument, "no memory");
    append_error([](auto& k, auto&) { k.strides[3] = 2; }, ErrorCode::invalid_argument, "k has last stride 2");
    append_error([](auto& k, auto&) { k.shape[2] = -1; }, ErrorCode::shape_mismatch, "no negative size");

    const Tokens packed(f.random, 1, random_tokens(f.random, 6, DType::f32), DType::f32);
    const auto packed_error = [&](const std::vector<std::int64_t>& starts, const char* message) {
        EXPECT_THAT([&] { f.cache.append({{&id, 1}, starts}, packed.k.view, packed.v.view); },
                    testing::Throws<Error>(testing::Property(&Error::what, testing::HasSubstr(message))));
    };
    packed_error({0, 5}, "cumulative_tokens has 2 numbers from 0 to 5; expected at least 1, from 0 to 6");
    packed_error({0, 3, 6}, "cumulative_tokens has 3 numbers; expected 2");
    packed_error({0, 7, 6}, "cumulative_tokens falls from 7 to 6");
    EXPECT_EQ(f.cache.size(id), 5) << "a refused append has left tokens";

    Fixture small(KvCache::contiguous(good, {.capacity = 8}));
    const SequenceId only = small.cache.add();
    small.append(only, 6);
    EXPECT_ERROR(small.append(only, 3), ErrorCode::out_of_range,
                 "has 6 tokens, and 3 more would pass its capacity of 8");
    small.append(only, 2);
}

}  // namespace
}  // namespace qkv
