// The same row gives the same bits: for any number of threads, any batch around its sequence, any cut into calls, any
// run, and whatever floating-point modes the caller has set.
#include <gtest/gtest.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstdlib>
#include <thread>

#include "support/small.hpp"

namespace qkv {
namespace {

using support::same_bits;
using support::same_results;
using support::Small;

const support::Sizes kSizes{
    .batch = 2, .heads = 6, .kv_heads = 2, .queries = 150, .keys = 170, .head_dim = 24, .value_dim = 20};

AttentionOptions busy_options() {
    AttentionOptions options;
    options.mask = Mask::causal(Align::bottom_right);
    options.softcap = 5.0;
    options.dropout.p = 0.2;
    return options;
}

/// Forward and backward with all the gradients that sum over rows.
struct Outcome {
    Small<float> results{kSizes};
    std::vector<float> bias = std::vector<float>(170, 0.25F);
    std::vector<float> slopes{0.1F, 0.2F, 0.3F, 0.4F, 0.5F, 0.6F};
    std::vector<float> dbias = std::vector<float>(170), dalibi = std::vector<float>(6), dsinks = std::vector<float>(6);

    explicit Outcome(const Runtime& runtime) {
        AttentionOptions options = busy_options();
        options.mask =
            options.mask & Mask::bias(view(bias.data(), {1, 1, 1, 170})) & Mask::alibi(per_head(slopes.data(), 6));
        options.sinks = per_head(slopes.data(), 6);
        results.forward(options, runtime);
        AttentionGradients gradients = results.gradients();
        gradients.dbias = view(dbias.data(), {1, 1, 1, 170});
        gradients.dalibi = per_head(dalibi.data(), 6);
        gradients.dsinks = per_head(dsinks.data(), 6);
        attention_backward(results.q_view(), results.k_view(), results.v_view(), results.d_out_view(), results.saved(),
                           gradients, options, runtime);
    }
    friend bool operator==(const Outcome& a, const Outcome& b) {
        return same_results(a.results, b.results) && same_bits(a.dbias, b.dbias) && same_bits(a.dalibi, b.dalibi) &&
               same_bits(a.dsinks, b.dsinks);
    }
};

TEST(AttentionBits, DoNotDependOnThreads) {
    const Outcome one(Runtime::serial());
    for (std::int64_t threads = 2; threads <= 16; ++threads) {
        EXPECT_TRUE(Outcome(Runtime(threads)) == one) << threads;
    }
    const Runtime backwards(5, [](std::int64_t tasks, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t task = tasks; task-- > 0;) {
            body(task);
        }
    });
    EXPECT_TRUE(Outcome(backwards) == one);
}

/// One key head with 24 tiles of query rows: its gradients pass from panel to panel, and from thread to thread.
template <class T>
void check_panels() {
    const support::Sizes sizes{
        .batch = 1, .heads = 6, .kv_heads = 1, .queries = 250, .keys = 270, .head_dim = 24, .value_dim = 40};
    const std::int64_t query_starts[] = {0, 190, 190, 250}, key_starts[] = {0, 180, 200, 270};
    AttentionOptions busy = busy_options(), windowed = busy_options(), plain, packed;
    windowed.mask = Mask::window(70, 0, Align::bottom_right);
    packed.mask = Mask::packed(query_starts, key_starts);
    for (const AttentionOptions& options : {busy, windowed, plain, packed}) {
        Small<T> one(sizes);
        one.forward(options);
        one.backward(options);
        for (const std::int64_t threads : {2, 3, 5, 16}) {
            const Runtime runtime(threads);
            Small<T> other(sizes);
            other.forward(options, runtime);
            other.backward(options, runtime);
            EXPECT_TRUE(same_results(one, other)) << threads << " threads";
        }
        const Runtime backwards(3, [](std::int64_t tasks, const std::function<void(std::int64_t)>& body) {
            for (std::int64_t task = tasks; task-- > 0;) {
                body(task);
            }
        });
        Small<T> other(sizes);
        other.forward(options, backwards);
        other.backward(options, backwards);
        EXPECT_TRUE(same_results(one, other)) << "tasks one after another";
    }
}

TEST(AttentionBits, DoNotDependOnThePanelsOfAChain) {
    check_panels<float>();
    check_panels<double>();
    check_panels<BFloat16>();
    check_panels<Float16>();
}

/// The last token alone: its heads share a tile of rows. In the call for all tokens they do not.
template <class T>
void check_last_token(std::int64_t head_dim, std::int64_t value_dim) {
    const support::Sizes sizes{
        .batch = 2, .heads = 6, .kv_heads = 2, .queries = 90, .keys = 90, .head_dim = head_dim, .value_dim = value_dim};
    AttentionOptions options;
    options.mask = Mask::window(77, 0, Align::bottom_right);
    Small<T> all(sizes);
    all.forward(options);
    support::Sizes last_sizes = sizes;
    last_sizes.queries = 1;
    Small<T> last(last_sizes);
    last.k = all.k;
    last.v = all.v;
    for (std::int64_t head = 0; head < 12; ++head) {
        std::copy_n(all.q.begin() + (head * 90 + 89) * head_dim, head_dim, last.q.begin() + head * head_dim);
    }
    for (const std::int64_t threads : {1, 3}) {
        last.forward(options, Runtime(threads));
        for (std::int64_t head = 0; head < 12; ++head) {
            EXPECT_TRUE(support::same_bits(last.out.data() + head * value_dim,
                                           all.out.data() + (head * 90 + 89) * value_dim,
                                           static_cast<std::size_t>(value_dim)));
            EXPECT_EQ(last.lse[static_cast<std::size_t>(head)], all.lse[static_cast<std::size_t>(head * 90 + 89)]);
        }
    }
}

TEST(AttentionBits, AreThoseOfTheSameTokenAmongOthers) {
    for (const auto& [head_dim, value_dim] : {std::pair{40, 24}, {16, 48}, {48, 144}}) {  // packed, or as they lie
        check_last_token<float>(head_dim, value_dim);
        check_last_token<BFloat16>(head_dim, value_dim);
        check_last_token<Float16>(head_dim, value_dim);
    }
}

TEST(AttentionBits, AreTheSameInEveryRun) {
    const char* text = std::getenv("QKV_TEST_RERUNS");
    const std::int64_t reruns = text == nullptr ? 1000 : std::strtoll(text, nullptr, 10);
    const Runtime runtime(4);
    const support::Sizes sizes{
        .batch = 4, .heads = 4, .kv_heads = 2, .queries = 70, .keys = 66, .head_dim = 8, .value_dim = 8};
    Small<float> first(sizes);
    first.forward(busy_options(), runtime);
    first.backward(busy_options(), runtime);
    Small<float> again(sizes);
    for (std::int64_t run = 0; run < reruns; ++run) {
        again.forward(busy_options(), runtime);
        again.backward(busy_options(), runtime);
        ASSERT_TRUE(same_results(first, again)) << run;
    }
}

TEST(AttentionBits, SurviveCallsFromSeveralThreadsAtOnce) {
    const Runtime runtime(3);
    const Outcome one(Runtime::serial());
    std::vector<int> equal(4, 0);
    std::vector<std::thread> callers;
    callers.reserve(equal.size());
    for (int& result : equal) {
        callers.emplace_back([&] { result = Outcome(runtime) == one ? 1 : 0; });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    EXPECT_EQ(equal, std::vector<int>(4, 1));
}

/// A sequence alone, as row 2 of a padded batch, and as a segment of a packed one.
TEST(AttentionBits, DoNotDependOnTheBatchAroundASequence) {
    const support::Sizes alone{
        .batch = 1, .heads = 4, .kv_heads = 2, .queries = 75, .keys = 90, .head_dim = 16, .value_dim = 16};
    AttentionOptions options = busy_options();
    const std::int64_t id[] = {42};
    options.dropout.sequence_ids = id;
    Small<float> single(alone);
    single.forward(options);
    single.backward(options);

    support::Sizes batched = alone;
    batched.batch = 3;
    batched.keys = 130;
    Small<float> batch(batched, 99);
    // Row `token` of head `head`, of `heads` × `tokens`.
    const auto copy = [](const std::vector<float>& from, std::int64_t from_tokens, std::vector<float>& to,
                         std::int64_t to_tokens, std::int64_t to_batch, std::int64_t to_token, std::int64_t heads) {
        for (std::int64_t head = 0; head < heads; ++head) {
            std::copy_n(from.begin() + head * from_tokens * 16, from_tokens * 16,
                        to.begin() + ((to_batch * heads + head) * to_tokens + to_token) * 16);
        }
    };
    const auto equal = [](const std::vector<float>& a, std::int64_t a_tokens, const std::vector<float>& b,
                          std::int64_t b_tokens, std::int64_t b_batch, std::int64_t b_token, std::int64_t heads) {
        for (std::int64_t head = 0; head < heads; ++head) {
            const auto* row = b.data() + ((b_batch * heads + head) * b_tokens + b_token) * 16;
            if (std::memcmp(a.data() + head * a_tokens * 16, row, static_cast<std::size_t>(a_tokens) * 16 * 4) != 0) {
                return false;
            }
        }
        return true;
    };
    copy(single.q, 75, batch.q, 75, 2, 0, 4);
    copy(single.d_out, 75, batch.d_out, 75, 2, 0, 4);
    copy(single.k, 90, batch.k, 130, 2, 0, 2);
    copy(single.v, 90, batch.v, 130, 2, 0, 2);
    const std::int64_t ids[] = {1, 2, 42};
    const std::int64_t ends[] = {130, 7, 90};
    options.dropout.sequence_ids = ids;
    options.mask = Mask::causal(Align::bottom_right) & Mask::key_end(ends);
    batch.forward(options, Runtime(3));
    batch.backward(options, Runtime(3));
    EXPECT_TRUE(equal(single.out, 75, batch.out, 75, 2, 0, 4));
    EXPECT_TRUE(equal(single.dq, 75, batch.dq, 75, 2, 0, 4));
    EXPECT_TRUE(equal(single.dk, 90, batch.dk, 130, 2, 0, 2));
    EXPECT_TRUE(equal(single.dv, 90, batch.dv, 130, 2, 0, 2));

    support::Sizes packed_sizes = alone;
    packed_sizes.queries = 175;
    packed_sizes.keys = 201;
    Small<float> packed(packed_sizes, 77);
    copy(single.q, 75, packed.q, 175, 0, 33, 4);
    copy(single.d_out, 75, packed.d_out, 175, 0, 33, 4);
    copy(single.k, 90, packed.k, 201, 0, 50, 2);
    copy(single.v, 90, packed.v, 201, 0, 50, 2);
    const std::int64_t queries[] = {0, 33, 108, 175};
    const std::int64_t keys[] = {0, 50, 140, 201};
    const std::int64_t packed_ids[] = {1, 42, 2};
    options.dropout.sequence_ids = packed_ids;
    options.mask = Mask::causal(Align::bottom_right) & Mask::packed(queries, keys);
    packed.forward(options);
    packed.backward(options);
    EXPECT_TRUE(equal(single.out, 75, packed.out, 175, 0, 33, 4));
    EXPECT_TRUE(equal(single.dq, 75, packed.dq, 175, 0, 33, 4));
    EXPECT_TRUE(equal(single.dk, 90, packed.dk, 201, 0, 50, 2));
    EXPECT_TRUE(equal(single.dv, 90, packed.dv, 201, 0, 50, 2));
}

/// Queries in chunks with a global offset, as a cache is filled.
TEST(AttentionBits, DoNotDependOnHowQueriesAreCut) {
    const support::Sizes sizes{
        .batch = 1, .heads = 2, .kv_heads = 1, .queries = 140, .keys = 140, .head_dim = 16, .value_dim = 16};
    AttentionOptions options = busy_options();
    options.mask = Mask::causal(Align::top_left);
    Small<float> whole(sizes);
    whole.forward(options);
    for (const std::int64_t chunk : {1, 7, 64}) {
        Small<float> parts(sizes);
        for (std::int64_t begin = 0; begin < 140; begin += chunk) {
            const std::int64_t count = std::min(chunk, 140 - begin);
            AttentionOptions part = options;
            part.offsets.query = begin;
            const Shape4 shape{1, 2, count, 16};
            const Shape4 strides{2 * 140 * 16, 140 * 16, 16, 1};
            attention(view(parts.q.data() + begin * 16, shape, strides), parts.k_view(), parts.v_view(),
                      view(parts.out.data() + begin * 16, shape, strides), part);
        }
        EXPECT_TRUE(same_bits(whole.out, parts.out)) << chunk;
    }
}

#if defined(__x86_64__)
TEST(AttentionBits, DoNotDependOnTheCallersFloatingPointModes) {
    // Subnormal keys and values next to normal ones, and scores far enough apart for the smallest weights.
    const support::Sizes sizes{
        .batch = 1, .heads = 2, .kv_heads = 1, .queries = 70, .keys = 70, .head_dim = 4, .value_dim = 4};
    Small<float> given(sizes, 3, 6.0);
    for (std::size_t at = 0; at < given.v.size(); at += 3) {
        given.v[at] = 1e-40F;
        given.k[at] = 3e-41F;
    }
    const auto run = [&given] {
        Small<float> p = given;
        p.forward({}, Runtime(2));
        p.backward({}, Runtime(2));
        return p;
    };
    const Small<float> usual = run();
    const unsigned saved = _mm_getcsr();
    for (const unsigned modes : {0x8040U /* flush to zero, subnormals are zero */, 0x6000U /* round towards zero */}) {
        _mm_setcsr(saved | modes);
        const Small<float> other = run();
        const unsigned after = _mm_getcsr();
        _mm_setcsr(saved);
        EXPECT_EQ(after & 0xE040U, (saved | modes) & 0xE040U) << "the caller's modes have changed";
        EXPECT_TRUE(same_results(usual, other)) << modes;
    }
}
#endif

}  // namespace
}  // namespace qkv
