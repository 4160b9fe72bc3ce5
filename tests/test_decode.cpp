// Attention over caches: bit for bit the same whatever holds the keys, cuts the queries or shares the work; memory; bad
// input.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "qkv/kv_cache.hpp"
#include "support/expect_error.hpp"
#include "support/guard.hpp"
#include "support/small.hpp"

namespace qkv {
namespace {

using support::same_bits;

// ---- bits
// ------------------------------------------------------------------------------------------------------------

constexpr std::int64_t kTokens = 1200, kHeads = 6, kKvHeads = 2, kDim = 16;

const support::Sizes kSizes{.batch = 1,
                            .heads = kHeads,
                            .kv_heads = kKvHeads,
                            .queries = kTokens,
                            .keys = kTokens,
                            .head_dim = kDim,
                            .value_dim = kDim};

/// One sequence, to be decoded in many ways.
struct Decoded {
    support::Small<float> p{kSizes, 11};
    std::array<float, 6> slopes{0.01F, 0.02F, 0.03F, 0.04F, 0.05F, 0.06F};

    [[nodiscard]] AttentionOptions options() const {
        AttentionOptions options;
        options.mask = Mask::causal(Align::bottom_right) & Mask::alibi(per_head(slopes.data(), kHeads));
        options.sinks = per_head(slopes.data(), kHeads);
        options.softcap = 20.0;
        return options;
    }
    /// Tokens [begin, begin + count) of q or out, k or v.
    template <class T>
    static auto tokens(T& values, std::int64_t heads, std::int64_t begin, std::int64_t count) {
        return view(values.data() + begin * kDim, {1, heads, count, kDim},
                    {heads * kTokens * kDim, kTokens * kDim, kDim, 1});
    }
    void append(KvCache& cache, SequenceId id, std::int64_t begin, std::int64_t count) {
        cache.append({{&id, 1}}, tokens(p.k, kKvHeads, begin, count), tokens(p.v, kKvHeads, begin, count));
    }
    /// Appends and attends to `chunk` tokens at a time, from `begin` on, into out.
    void decode(KvCache& cache, SequenceId id, std::int64_t begin, std::int64_t chunk, const AttentionOptions& options,
                const Runtime& runtime) {
        for (std::int64_t at = begin; at < kTokens; at += chunk) {
            const std::int64_t count = std::min(chunk, kTokens - at);
            append(cache, id, at, count);
            attention(tokens(p.q, kHeads, at, count), cache, {{&id, 1}}, tokens(p.out, kHeads, at, count), options, {},
                      runtime);
        }
    }
};

const KvLayout kLayout{.kv_heads = kKvHeads, .head_dim = kDim, .value_dim = std::nullopt, .dtype = DType::f32};

/// The whole sequence at once over a contiguous cache on one thread: what all others must give.
const std::vector<float>& one_call() {
    static const std::vector<float> out = [] {
        Decoded d;
        KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
        d.decode(cache, cache.add(), 0, kTokens, d.options(), Runtime::serial());
        return d.p.out;
    }();
    return out;
}

TEST(DecodeBits, DoNotDependOnTheCutOfQueries) {
    for (const std::int64_t chunk : {1, 3, 64, 500}) {
        Decoded d;
        KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
        d.decode(cache, cache.add(), 0, chunk, d.options(), Runtime::serial());
        EXPECT_TRUE(same_bits(d.p.out, one_call())) << chunk;
    }
}

TEST(DecodeBits, DoNotDependOnThreads) {
    for (const std::int64_t threads : {2, 3, 5, 16}) {
        const Runtime runtime(threads);
        for (const std::int64_t chunk : {std::int64_t{400}, kTokens}) {
            Decoded d;
            KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
            d.decode(cache, cache.add(), 0, chunk, d.options(), runtime);
            EXPECT_TRUE(same_bits(d.p.out, one_call())) << threads << " threads, chunks of " << chunk;
        }
        // A few queries: too few tiles of rows for the threads, so their spans are shared out.
        Decoded d;
        KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
        const SequenceId id = cache.add();
        d.append(cache, id, 0, kTokens);
        const auto q = Decoded::tokens(d.p.q, kHeads, kTokens - 20, 20);
        const auto out = Decoded::tokens(d.p.out, kHeads, kTokens - 20, 20);
        const auto bytes = [&](const Runtime& used) {
            return attention_workspace_size(q, cache, {{&id, 1}}, out, d.options(), {}, used);
        };
        EXPECT_GE(bytes(runtime) - bytes(Runtime(1)), threads > 2 ? 6U * 20U * kHeads * kDim : 0U) << "not shared out";
        attention(q, cache, {{&id, 1}}, out, d.options(), {}, runtime);
        for (std::int64_t h = 0; h < kHeads; ++h) {
            const auto at = static_cast<std::size_t>(((h + 1) * kTokens - 20) * kDim);
            EXPECT_TRUE(same_bits(d.p.out.data() + at, one_call().data() + at, 20 * kDim)) << threads;
        }
    }
}

TEST(DecodeBits, DoNotDependOnThePolicyOrTheSizeOfBlocks) {
    for (const std::int64_t block : {16, 32, 64, 128, 1024}) {
        Decoded paged;
        KvCache pages = KvCache::paged(kLayout, {.blocks = 2 * (kTokens / block + 1), .block_tokens = block});
        const SequenceId parent = pages.add();
        paged.append(pages, parent, 0, 700);
        const SequenceId child = pages.fork(parent, 610);  // a shared prefix, then blocks of its own
        paged.decode(pages, child, 610, 5, paged.options(), Runtime::serial());
        Decoded ring;
        KvCache rings = KvCache::windowed(kLayout, {.window = kTokens, .max_append = kTokens, .block_tokens = block});
        ring.decode(rings, rings.add(), 0, kTokens, ring.options(), Runtime::serial());
        EXPECT_TRUE(same_bits(ring.p.out, one_call())) << block;
        for (std::int64_t h = 0; h < kHeads; ++h) {
            const auto at = static_cast<std::size_t>((h * kTokens + 610) * kDim);
            EXPECT_TRUE(same_bits(paged.p.out.data() + at, one_call().data() + at, (kTokens - 610) * kDim)) << block;
        }
    }
}

TEST(DecodeBits, ARingIsAWindowOverAllTokens) {
    for (const std::int64_t window : {1, 40, 64, 300}) {
        Decoded full;
        KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
        AttentionOptions options = full.options();
        options.mask = options.mask & Mask::window(window - 1, std::nullopt, Align::bottom_right);
        full.decode(cache, cache.add(), 0, kTokens, options, Runtime::serial());
        for (const std::int64_t block : {16, 64}) {
            for (const std::int64_t chunk : {1, 7, 100}) {
                Decoded ring;
                KvCache rings =
                    KvCache::windowed(kLayout, {.window = window, .max_append = chunk, .block_tokens = block});
                const SequenceId id = rings.add();
                ring.decode(rings, id, 0, chunk, ring.options(), Runtime::serial());
                EXPECT_TRUE(same_bits(ring.p.out, full.p.out)) << window << " " << block << " " << chunk;
                EXPECT_GT(rings.first(id), 0) << "the ring never turned";
            }
        }
    }
}

TEST(DecodeBits, DoNotDependOnTheBatch) {
    Decoded d;
    Decoded others;
    KvCache cache = KvCache::paged(kLayout, {.blocks = 80});
    const SequenceId ids[] = {cache.add(), cache.add(), cache.add()};
    others.append(cache, ids[0], 0, 37);
    d.append(cache, ids[1], 0, kTokens);
    others.append(cache, ids[2], 100, 900);
    // As packed queries: 1 of the first, the last 9 of the second, none and then 3 of the others, one of them twice.
    const SequenceId asked[] = {ids[0], ids[1], ids[2], ids[2], ids[1]};
    const std::int64_t starts[] = {0, 1, 10, 10, 13, 14};
    std::vector<float> q(14 * kHeads * kDim), out(q.size());
    const auto copy = [&](std::int64_t to, std::int64_t from, std::int64_t count) {
        for (std::int64_t h = 0; h < kHeads; ++h) {
            std::copy_n(d.p.q.data() + (h * kTokens + from) * kDim, count * kDim, q.data() + (h * 14 + to) * kDim);
        }
    };
    copy(0, 36, 1);
    copy(1, kTokens - 9, 9);
    copy(10, 7, 3);
    copy(13, kTokens - 1, 1);
    for (const std::int64_t threads : {1, 4}) {
        attention(view(q.data(), {1, kHeads, 14, kDim}), cache, {asked, starts},
                  view(out.data(), {1, kHeads, 14, kDim}), d.options(), {}, Runtime(threads));
        for (std::int64_t h = 0; h < kHeads; ++h) {
            const float* expected = one_call().data() + ((h + 1) * kTokens - 9) * kDim;
            EXPECT_TRUE(same_bits(out.data() + (h * 14 + 1) * kDim, expected, 9 * kDim));
            EXPECT_TRUE(same_bits(out.data() + (h * 14 + 13) * kDim, expected + 8 * kDim, kDim));
        }
    }
    // As rows of a batch with one query each.
    std::vector<float> rows(3 * kHeads * kDim), row_out(rows.size());
    for (std::int64_t h = 0; h < kHeads; ++h) {
        std::copy_n(d.p.q.data() + ((h + 1) * kTokens - 1) * kDim, kDim, rows.data() + (kHeads + h) * kDim);
    }
    attention(view(rows.data(), {3, kHeads, 1, kDim}), cache, {ids}, view(row_out.data(), {3, kHeads, 1, kDim}),
              d.options(), {}, Runtime(3));
    for (std::int64_t h = 0; h < kHeads; ++h) {
        EXPECT_TRUE(
            same_bits(row_out.data() + (kHeads + h) * kDim, one_call().data() + ((h + 1) * kTokens - 1) * kDim, kDim));
    }
}

TEST(DecodeBits, DoNotDependOnWhatElseIsAskedFor) {
    Decoded d;
    KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
    const SequenceId id = cache.add();
    d.append(cache, id, 0, kTokens);
    std::vector<float> lse(kHeads * 4), weights(kHeads * 4 * kTokens), scores(weights.size());
    AttentionExtras extras;
    extras.lse = per_row(lse.data(), 1, kHeads, 4);
    extras.weights = view(weights.data(), {1, kHeads, 4, kTokens});
    extras.scores = view(scores.data(), {1, kHeads, 4, kTokens});
    extras.scores_at = ScorePoint::scaled;
    attention(Decoded::tokens(d.p.q, kHeads, kTokens - 4, 4), cache, {{&id, 1}},
              Decoded::tokens(d.p.out, kHeads, kTokens - 4, 4), d.options(), extras, Runtime(2));
    for (std::int64_t h = 0; h < kHeads; ++h) {
        const auto at = static_cast<std::size_t>(((h + 1) * kTokens - 4) * kDim);
        EXPECT_TRUE(same_bits(d.p.out.data() + at, one_call().data() + at, 4 * kDim));
        // The scaled product of the last query and the first key, from its definition.
        double product = 0.0;
        for (std::int64_t x = 0; x < kDim; ++x) {
            product += static_cast<double>(d.p.q[static_cast<std::size_t>(((h + 1) * kTokens - 1) * kDim + x)]) *
                       static_cast<double>(d.p.k[static_cast<std::size_t>(h / 3 * kTokens * kDim + x)]);
        }
        EXPECT_NEAR(static_cast<double>(scores[static_cast<std::size_t>((h * 4 + 3) * kTokens)]), product / 4, 1e-5);
    }
}

// ---- memory
// ----------------------------------------------------------------------------------------------------------

/// Writes NaN wherever no token of the sequence lies in its blocks.
void poison_tails(const KvCache& cache, SequenceId id) {
    const auto blocks = static_cast<std::int64_t>(cache.block_table(id).size());
    for (std::int64_t index = 0; index < blocks; ++index) {
        const KvBlock block = cache.block(id, index);
        for (const void* data : {block.keys, block.values}) {
            auto* values = static_cast<float*>(const_cast<void*>(data));
            for (std::int64_t h = 0; h < kKvHeads; ++h) {
                for (std::int64_t t = block.tokens; t < cache.block_tokens(); ++t) {
                    std::fill_n(values + (h * cache.block_tokens() + t) * kDim, kDim, std::nanf(""));
                }
            }
        }
    }
}

TEST(Decode, UnusedMemoryChangesNoBit) {
    Decoded clean;
    Decoded poisoned;
    const auto run = [](Decoded& d, bool poison, std::int64_t tokens) {
        KvCache pages = KvCache::paged(kLayout, {.blocks = 40, .block_tokens = 32});
        KvCache rings = KvCache::windowed(kLayout, {.window = 50, .max_append = 3, .block_tokens = 16});
        const SequenceId page = pages.add();
        const SequenceId ring = rings.add();
        std::vector<float> out;
        for (std::int64_t at = 0; at < 200; at += tokens) {
            d.append(pages, page, at, tokens);
            d.append(rings, ring, at, tokens);
            if (poison) {
                poison_tails(pages, page);
                poison_tails(rings, ring);
            }
            for (const auto& [cache, id] : {std::pair(&pages, page), std::pair(&rings, ring)}) {
                attention(Decoded::tokens(d.p.q, kHeads, at, tokens), *cache, {{&id, 1}},
                          Decoded::tokens(d.p.out, kHeads, at, tokens), d.options());
                out.insert(out.end(), d.p.out.begin(), d.p.out.end());
            }
        }
        return out;
    };
    for (const std::int64_t tokens : {3, 1}) {  // nine rows a tile, and three, which take values as they lie
        EXPECT_TRUE(same_bits(run(clean, false, tokens), run(poisoned, true, tokens))) << tokens;
    }
}

TEST(Decode, AMaskedNaNIsNotSeenAndAnAllowedOneIs) {
    Decoded d;
    d.p.v[5 * kDim] = std::nanf("");
    KvCache cache = KvCache::contiguous(kLayout, {.capacity = kTokens});
    const SequenceId id = cache.add();
    d.append(cache, id, 0, 20);
    const auto first_out = [&](const Mask& mask) {
        AttentionOptions options;
        options.mask = mask;
        attention(Decoded::tokens(d.p.q, kHeads, 19, 1), cache, {{&id, 1}}, Decoded::tokens(d.p.out, kHeads, 19, 1),
                  options);
        return d.p.out[19 * kDim];
    };
    EXPECT_TRUE(std::isnan(first_out({})));
    EXPECT_TRUE(std::isfinite(first_out(Mask::window(13, std::nullopt, Align::bottom_right))));
}

TEST(Decode, WorksInTheGivenWorkspace) {
    Decoded d;
    KvCache cache = KvCache::paged(kLayout, {.blocks = 30});
    const SequenceId id = cache.add();
    d.append(cache, id, 0, kTokens);
    for (const std::int64_t threads : {1, 2, 6}) {
        const Runtime runtime(threads);
        const auto q = Decoded::tokens(d.p.q, kHeads, kTokens - 20, 20);
        const auto out = Decoded::tokens(d.p.out, kHeads, kTokens - 20, 20);
        const std::size_t bytes = attention_workspace_size(q, cache, {{&id, 1}}, out, d.options(), {}, runtime);
        const support::Guarded memory(bytes);
        AttentionExtras extras;
        extras.workspace = {memory.data(), bytes};
        attention(q, cache, {{&id, 1}}, out, d.options(), extras, runtime);
        const auto at = static_cast<std::size_t>((kTokens - 20) * kDim);
        EXPECT_TRUE(same_bits(d.p.out.data() + at, one_call().data() + at, 20 * kDim)) << threads;
        extras.workspace = extras.workspace.first(bytes - 64);
        EXPECT_ERROR(attention(q, cache, {{&id, 1}}, out, d.options(), extras, runtime), ErrorCode::invalid_argument,
                     "workspace has");
    }
}

TEST(Decode, ScoreFunctionsSeePositions) {
    const auto value = [](auto score, std::int64_t sequence, std::int64_t head, std::int64_t query, std::int64_t key) {
        using T = decltype(score);
        return score + static_cast<T>(sequence) + static_cast<T>((head + 3 * query + key) % 7);
    };
    const ElementwiseScore function{value, [](auto score, auto...) { return decltype(score)(1); }};
    Decoded d;
    AttentionOptions options;
    options.mask = Mask::causal(Align::top_left);
    options.score_function = function.function();
    options.offsets.head = 2;
    d.p.forward(options);
    const std::vector<float> full = d.p.out;
    KvCache cache = KvCache::paged(kLayout, {.blocks = 30});
    d.decode(cache, cache.add(), 0, 50, options, Runtime::serial());
    for (std::size_t at = 0; at < full.size(); ++at) {
        ASSERT_NEAR(full[at], d.p.out[at], 1e-5F);
    }
}

TEST(Decode, EmptySequencesAndEmptyBatches) {
    Decoded d;
    KvCache cache = KvCache::paged(kLayout, {.blocks = 1});
    const SequenceId id = cache.add();
    std::vector<float> lse(kHeads, 5.0F);
    AttentionExtras extras;
    extras.lse = per_row(lse.data(), 1, kHeads, 1);
    d.p.out.assign(d.p.out.size(), 5.0F);
    attention(Decoded::tokens(d.p.q, kHeads, 0, 1), cache, {{&id, 1}}, Decoded::tokens(d.p.out, kHeads, 0, 1), {},
              extras, Runtime(2));
    EXPECT_EQ(d.p.out[0], 0.0F);
    EXPECT_EQ(lse[0], -INFINITY);
    EXPECT_NO_THROW(
        attention(view(d.p.q.data(), {0, kHeads, 1, kDim}), cache, {}, view(d.p.out.data(), {0, kHeads, 1, kDim})));
    EXPECT_NO_THROW(attention(view(d.p.q.data(), {1, kHeads, 0, kDim}), cache, {{&id, 1}},
                              view(d.p.out.data(), {1, kHeads, 0, kDim})));
}

// ---- bad input
// -------------------------------------------------------------------------------------------------------

TEST(Decode, NamesWhatIsWrong) {
    Decoded d;
    KvCache cache = KvCache::windowed(kLayout, {.window = 20, .max_append = 4, .block_tokens = 16});
    KvCache other = KvCache::paged(kLayout, {.blocks = 1});
    const SequenceId id = cache.add();
    const SequenceId foreign = other.add();
    d.append(cache, id, 0, 200);
    struct Call {
        ConstTensorView q;
        TensorView out;
        std::vector<SequenceId> ids;
        std::vector<std::int64_t> starts;
        AttentionOptions options;
        AttentionExtras extras;
    };
    const auto refused = [&](auto spoil, ErrorCode code, const char* message) {
        Call call{Decoded::tokens(d.p.q, kHeads, 199, 1), Decoded::tokens(d.p.out, kHeads, 199, 1), {id}, {}, {}, {}};
        spoil(call);
        EXPECT_ERROR(attention(call.q, cache, {call.ids, call.starts}, call.out, call.options, call.extras), code,
                     message);
        EXPECT_EQ(d.p.out, std::vector<float>(d.p.out.size())) << message << ": out was written";
    };
    const auto shape = ErrorCode::shape_mismatch;
    const auto argument = ErrorCode::invalid_argument;
    refused([&](Call& c) { c.ids = {foreign}; }, argument, "sequences: one is");
    refused([&](Call& c) { c.ids = {id, id}; }, shape, "q has shape [1, 6, 1, 16]; expected a first size of 2");
    refused([&](Call& c) { c.starts = {0, 2}; }, shape, "cumulative_tokens has 2 numbers from 0 to 2");
    refused([&](Call& c) { c.starts = {0, 0, 1}; }, shape, "cumulative_tokens has 3 numbers; expected 2");
    refused([&](Call& c) { c.q.shape[3] = 8; }, shape, "q has shape [1, 6, 1, 8]");
    refused([&](Call& c) { c.q.shape[1] = 5; }, shape, "q has 5 heads and the cache has 2");
    refused([&](Call& c) { c.q.dtype = DType::boolean; }, ErrorCode::unsupported, "q has type bool");
    refused([&](Call& c) { c.q.data = nullptr; }, argument, "q has shape");
    refused([&](Call& c) { c.out.shape[3] = 8; }, shape, "out has shape [1, 6, 1, 8]");
    refused([&](Call& c) { c.out.dtype = DType::bf16; }, ErrorCode::unsupported, "out has type bf16");
    refused([&](Call& c) { c.options.dropout.p = 0.1; }, ErrorCode::unsupported, "dropout is given");
    refused([&](Call& c) { c.options.offsets.query = 3; }, ErrorCode::unsupported, "an offset of queries");
    const std::int64_t starts[] = {0, 1};
    refused([&](Call& c) { c.options.mask = Mask::packed(starts, starts); }, ErrorCode::unsupported, "Mask::packed");
    refused(
        [&](Call& c) {
            c.q = Decoded::tokens(d.p.q, kHeads, 100, 60);
            c.out = Decoded::tokens(d.p.out, kHeads, 100, 60);
        },
        ErrorCode::out_of_range,
        "its 60 queries of sequence 0 see positions from 121 on, and the ring holds them from");
    std::vector<float> scores(kHeads * 200);
    refused(
        [&](Call& c) {
            c.extras.scores = view(scores.data(), {1, kHeads, 1, 200});
            c.extras.scores_at = ScorePoint::scaled;
        },
        ErrorCode::unsupported, "scores_at shows masked keys too");
    refused([&](Call& c) { c.extras.weights = view(scores.data(), {1, kHeads, 1, 199}); }, shape,
            "weights has shape [1, 6, 1, 199]");
}

}  // namespace
}  // namespace qkv
