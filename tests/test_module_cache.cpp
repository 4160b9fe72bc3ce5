// Generation: a sequence that is decoded over a cache, in any cut, equals the same sequence in one forward.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "qkv/kv_cache.hpp"
#include "qkv/nn.hpp"
#include "support/compare.hpp"
#include "support/expect_error.hpp"
#include "support/stored.hpp"

namespace qkv::nn {
namespace {

template <class T>
BasicTensor<T> drawn(const Shape& shape, std::uint64_t seed) {
    Generator generator(seed);
    BasicTensor<T> values(shape);
    generator.uniform_(values.values(), -1.0, 1.0);
    return values;
}

template <class To, class From>
BasicTensor<To> converted(const BasicTensor<From>& tensor) {
    return BasicTensor<To>(tensor.shape(), std::vector<To>(tensor.values().begin(), tensor.values().end()));
}

/// Rows [begin, end) of a sequence [tokens, width].
template <class T>
BasicTensor<T> rows(const BasicTensor<T>& x, std::int64_t begin, std::int64_t end) {
    const std::int64_t width = x.size(1);
    return BasicTensor<T>({end - begin, width}, {x.data() + begin * width, x.data() + end * width});
}

template <class T>
void append_rows(std::vector<T>& all, const BasicTensor<T>& more) {
    all.insert(all.end(), more.values().begin(), more.values().end());
}

std::vector<double> doubles(const auto& values) { return {values.begin(), values.end()}; }

constexpr std::int64_t kTokens = 40;  // more than two blocks of 16
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kHeadDim = 6;

MultiHeadAttentionOptions options_of(std::int64_t kv_heads, bool rope) {
    MultiHeadAttentionOptions options{.d_in = 10,
                                      .d_out = kHeads * kHeadDim,
                                      .context_length = kTokens,
                                      .num_heads = kHeads,
                                      .qkv_bias = true,
                                      .num_kv_heads = kv_heads};
    if (rope) {
        options.rope = RopeOptions{.rotary_dim = 4, .pairing = RopePairing::interleaved};
    }
    return options;
}

template <class T>
BasicMultiHeadAttention<T> module_of(const MultiHeadAttentionOptions& options) {
    Generator generator(5);
    BasicMultiHeadAttention<T> module(options, generator);
    module.eval();
    return module;
}

/// Both with the parameters of the float one.
BasicMultiHeadAttention<double> in_double(const MultiHeadAttentionOptions& options,
                                          const BasicMultiHeadAttention<float>& module) {
    BasicMultiHeadAttention<double> copy = module_of<double>(options);
    StateDict<double> state;
    for (const auto& [name, tensor] : module.state_dict()) {
        state.emplace(name, converted<double>(tensor));
    }
    copy.load_state_dict(state);
    return copy;
}

KvCache paged(std::int64_t kv_heads, DType dtype = DType::f32) {
    return KvCache::paged({.kv_heads = kv_heads, .head_dim = kHeadDim, .dtype = dtype},
                          {.blocks = 32, .block_tokens = 16});
}

/// One sequence in chunks of these sizes.
template <class T>
std::vector<T> decoded(const BasicMultiHeadAttention<T>& module, const BasicTensor<T>& x, KvCache& cache,
                       const std::vector<std::int64_t>& chunks) {
    const SequenceId sequence = cache.add();
    std::vector<T> all;
    std::int64_t at = 0;
    for (const std::int64_t chunk : chunks) {
        append_rows(all, module.forward(rows(x, at, at + chunk), cache, {.sequences = {&sequence, 1}}));
        at += chunk;
    }
    EXPECT_EQ(cache.size(sequence), at);
    return all;
}

const std::vector<std::int64_t> kOneByOne(kTokens, 1);
const std::vector<std::int64_t> kPromptThenTokens = [] {
    std::vector<std::int64_t> chunks(kTokens - 17, 1);
    chunks.front() = 18;
    return chunks;
}();

class DecodedModule : public testing::TestWithParam<std::pair<std::int64_t, bool>> {
protected:
    MultiHeadAttentionOptions options = options_of(GetParam().first, GetParam().second);
    std::int64_t kv_heads = GetParam().first;
};

TEST_P(DecodedModule, EqualsForwardOverTheWholeSequence) {
    const BasicMultiHeadAttention<float> module = module_of<float>(options);
    const BasicMultiHeadAttention<double> exact = in_double(options, module);
    const Tensor x = drawn<float>({kTokens, 10}, 6);
    const Tensor64 x64 = converted<double>(x);
    const std::vector<double> expected = doubles(exact.forward(x64).values());
    const std::vector<double> plain = doubles(module.forward(x).values());
    for (const auto& chunks : {kOneByOne, kPromptThenTokens, {7, 9, 1, 23}, {kTokens}}) {
        SCOPED_TRACE(chunks.size());
        KvCache cache = paged(kv_heads);
        support::expect_rule("output", doubles(decoded(module, x, cache, chunks)), expected, plain, DType::f32,
                             expected);
        // In float64 both ways round at 1e-16: what is left shows that the same sum is taken.
        KvCache cache64 = paged(kv_heads, DType::f64);
        const std::vector<double> got = decoded(exact, x64, cache64, chunks);
        for (std::size_t i = 0; i < got.size(); ++i) {
            ASSERT_NEAR(got[i], expected[i], 1e-14) << i;
        }
    }
}

TEST_P(DecodedModule, HasTheSameBitsInAnyCutCacheAndBatch) {
    const BasicMultiHeadAttention<float> module = module_of<float>(options);
    const Tensor x = drawn<float>({kTokens, 10}, 7);
    const Tensor other = drawn<float>({kTokens, 10}, 8);
    KvCache first = paged(kv_heads);
    const std::vector<float> expected = decoded(module, x, first, kOneByOne);
    const std::vector<float> expected_other = decoded(module, other, first, kOneByOne);
    for (const auto& chunks : {kPromptThenTokens, {7, 9, 1, 23}, {kTokens}}) {
        KvCache pages = paged(kv_heads);
        EXPECT_EQ(decoded(module, x, pages, chunks), expected);
        KvCache whole = KvCache::contiguous({.kv_heads = kv_heads, .head_dim = kHeadDim}, {.capacity = kTokens});
        EXPECT_EQ(decoded(module, x, whole, chunks), expected);
    }
    // Both together: a batch of equal steps, then packed, of unequal ones.
    KvCache cache = paged(kv_heads);
    const std::vector<SequenceId> sequences{cache.add(), cache.add()};
    Tensor both({2, 10, 10});
    std::copy_n(x.data(), 100, both.data());
    std::copy_n(other.data(), 100, both.data() + 100);
    const Tensor output = module.forward(both, cache, {.sequences = sequences});
    ASSERT_EQ(output.shape(), (Shape{2, 10, kHeads * kHeadDim}));
    std::vector<float> of_x(output.values().begin(), output.values().begin() + output.numel() / 2);
    std::vector<float> of_other(output.values().begin() + output.numel() / 2, output.values().end());
    std::int64_t at_x = 10;
    std::int64_t at_other = 10;
    while (at_x < kTokens || at_other < kTokens) {
        const std::int64_t more_x = std::min<std::int64_t>(3, kTokens - at_x);
        const std::int64_t more_other = std::min<std::int64_t>(5, kTokens - at_other);
        std::vector<float> joined;
        append_rows(joined, rows(x, at_x, at_x + more_x));
        append_rows(joined, rows(other, at_other, at_other + more_other));
        const std::vector<std::int64_t> ends{0, more_x, more_x + more_other};
        const Tensor step = module.forward(Tensor({more_x + more_other, 10}, joined), cache,
                                           {.sequences = sequences, .cumulative_tokens = ends});
        append_rows(of_x, rows(step, 0, more_x));
        append_rows(of_other, rows(step, more_x, more_x + more_other));
        at_x += more_x;
        at_other += more_other;
    }
    EXPECT_EQ(of_x, expected);
    EXPECT_EQ(of_other, expected_other);
}

TEST_P(DecodedModule, ForksContinueFromASharedPrefix) {
    const BasicMultiHeadAttention<float> module = module_of<float>(options);
    const Tensor x = drawn<float>({20, 10}, 9);
    const Tensor other = drawn<float>({5, 10}, 10);
    KvCache cache = paged(kv_heads);
    const SequenceId sequence = cache.add();
    (void)module.forward(x, cache, {.sequences = {&sequence, 1}});
    const SequenceId fork = cache.fork(sequence, 18);
    const Tensor continued = module.forward(other, cache, {.sequences = {&fork, 1}});

    std::vector<float> joined;
    append_rows(joined, rows(x, 0, 18));
    append_rows(joined, other);
    KvCache again = paged(kv_heads);
    const std::vector<float> whole = decoded(module, Tensor({23, 10}, joined), again, {23});
    EXPECT_TRUE(std::equal(whole.end() - continued.numel(), whole.end(), continued.data()));
    // And the one that was forked goes on undisturbed.
    const Tensor next = module.forward(other, cache, {.sequences = {&sequence, 1}});
    EXPECT_NE(next, continued);
}

TEST_P(DecodedModule, ATraceShowsTheNewTokensAndAllPositions) {
    const BasicMultiHeadAttention<float> module = module_of<float>(options);
    const Tensor x = drawn<float>({6, 10}, 11);
    Trace whole;
    (void)module.forward(x, {.trace = &whole});
    KvCache cache = paged(kv_heads);
    const SequenceId sequence = cache.add();
    const CacheBatch batch{.sequences = {&sequence, 1}};
    (void)module.forward(rows(x, 0, 4), cache, batch);
    Trace trace;
    const Tensor output = module.forward(rows(x, 4, 6), cache, batch, {.trace = &trace});
    EXPECT_EQ(*trace.find("output"), output);
    EXPECT_EQ(trace.find("rotated_keys") != nullptr, options.rope.has_value());
    // The last two rows of what the whole sequence shows: of every head, and of columns all six.
    for (const auto& [name, tensor] : trace.entries()) {
        SCOPED_TRACE(name);
        const Tensor* expected = whole.find(name);
        ASSERT_NE(expected, nullptr);
        if (tensor.shape() == expected->shape()) {
            EXPECT_EQ(tensor, *expected);  // parameters
            continue;
        }
        const std::int64_t width = tensor.size(-1);
        const std::int64_t blocks = tensor.numel() / (2 * width);
        ASSERT_EQ(expected->numel(), blocks * 6 * width);
        for (std::int64_t block = 0; block < blocks; ++block) {
            for (std::int64_t i = 0; i < 2 * width; ++i) {
                const float want = expected->data()[(block * 6 + 4) * width + i];
                const float got = tensor.data()[block * 2 * width + i];
                ASSERT_TRUE(got == want || std::fabs(got - want) < 1e-5F) << got << " for " << want;
            }
        }
    }
    for (const char* name : {"queries", "keys", "values", "masked", "weights", "context"}) {
        EXPECT_NE(trace.find(name), nullptr) << name;
    }
}

INSTANTIATE_TEST_SUITE_P(HeadsAndRope, DecodedModule,
                         testing::Values(std::pair{4, false}, std::pair{4, true}, std::pair{2, true},
                                         std::pair{1, true}, std::pair{1, false}),
                         [](const auto& param) {
                             return std::to_string(param.param.first) + (param.param.second ? "Rope" : "Plain");
                         });

TEST(DecodedWindow, EqualsAMaskThatHidesWhatIsFarAway) {
    // A ring of 8 tokens: the last row of a sequence equals a sequence of its last 8 tokens, but for their positions,
    // which the rope sees as distances alone.
    for (const bool rope : {false, true}) {
        SCOPED_TRACE(rope);
        const MultiHeadAttentionOptions options = options_of(2, rope);
        const BasicMultiHeadAttention<double> module = module_of<double>(options);
        const Tensor64 x = drawn<double>({kTokens, 10}, 12);
        KvCache ring = KvCache::windowed({.kv_heads = 2, .head_dim = kHeadDim, .dtype = DType::f64},
                                         {.window = 8, .block_tokens = 16});
        const std::vector<double> all = decoded(module, x, ring, kOneByOne);
        for (const std::int64_t last : {std::int64_t{7}, std::int64_t{20}, kTokens - 1}) {
            const Tensor64 expected = module.forward(rows(x, last - 7, last + 1));
            const std::int64_t width = expected.size(1);
            for (std::int64_t i = 0; i < width; ++i) {
                EXPECT_NEAR(all[static_cast<std::size_t>(last * width + i)], expected.data()[7 * width + i], 1e-13);
            }
        }
    }
}

TEST(DecodedModuleTypes, A16BitCacheIsOffByItsRounding) {
    const MultiHeadAttentionOptions options = options_of(2, true);
    const BasicMultiHeadAttention<float> module = module_of<float>(options);
    const Tensor x = drawn<float>({kTokens, 10}, 13);
    KvCache exact = paged(2);
    const std::vector<float> expected = decoded(module, x, exact, kOneByOne);
    for (const DType dtype : {DType::bf16, DType::f16}) {
        KvCache cache = paged(2, dtype);
        const std::vector<float> got = decoded(module, x, cache, kOneByOne);
        double error = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
            error = std::max(error, static_cast<double>(std::fabs(got[i] - expected[i])));
        }
        EXPECT_GT(error, 0.0);
        EXPECT_LT(error, 4 * support::epsilon(dtype));  // for keys, values and outputs around one
    }
}

TEST(DecodedModuleErrors, NothingIsAppended) {
    MultiHeadAttentionOptions options = options_of(2, true);
    options.rope->scaling = RopeDynamicNtk{.factor = 2.0, .original_context = 12};
    BasicMultiHeadAttention<float> module = module_of<float>(options);
    KvCache cache = paged(2);
    const SequenceId sequence = cache.add();
    const CacheBatch batch{.sequences = {&sequence, 1}};
    const auto refused = [&](const Tensor& x, const CacheBatch& of, ErrorCode code, const std::string& part) {
        SCOPED_TRACE(part);
        const std::int64_t before = cache.size(sequence);
        EXPECT_ERROR(module.forward(x, cache, of), code, part);
        EXPECT_EQ(cache.size(sequence), before);
    };
    refused(Tensor({2, 9}), batch, ErrorCode::shape_mismatch, "input has shape [2, 9]; expected [tokens, 10]");
    refused(Tensor({2, 1, 10}), batch, ErrorCode::shape_mismatch, "tokens has shape [2, 2, 1, 6]");
    refused(Tensor({41, 10}), batch, ErrorCode::out_of_range, "41 tokens are more than the context_length of 40");
    const SequenceId stranger = 99;
    refused(Tensor({1, 10}), {.sequences = {&stranger, 1}}, ErrorCode::invalid_argument, "is 99");
    const std::vector<std::int64_t> ends{0, 3};
    refused(Tensor({2, 10}), {.sequences = {&sequence, 1}, .cumulative_tokens = ends}, ErrorCode::shape_mismatch,
            "cumulative_tokens");
    (void)module.forward(Tensor({12, 10}), cache, batch);
    refused(Tensor({1, 10}), batch, ErrorCode::unsupported, "past the original_context of a dynamic NTK scaling");

    KvCache others = KvCache::paged({.kv_heads = 4, .head_dim = kHeadDim}, {.blocks = 2, .block_tokens = 16});
    const SequenceId there = others.add();
    EXPECT_ERROR(module.forward(Tensor({1, 10}), others, {.sequences = {&there, 1}}), ErrorCode::shape_mismatch,
                 "cache holds 4 heads with keys of 6 and values of 6; expected 2 heads of 6");
    options.dropout = 0.5;
    Generator generator(1);
    BasicMultiHeadAttention<float> training(options, generator);
    EXPECT_ERROR(training.forward(Tensor({1, 10}), cache, batch), ErrorCode::unsupported, "call eval()");
}

TEST(ContextLength, OfAPackedBatchIsThatOfEachSequence) {
    const BasicMultiHeadAttention<float> module = module_of<float>(options_of(2, true));
    KvCache cache = paged(2);
    const std::vector<SequenceId> sequences{cache.add(), cache.add()};
    const std::vector<std::int64_t> ends{0, kTokens, 2 * kTokens};
    const Tensor output =
        module.forward(Tensor({2 * kTokens, 10}), cache, {.sequences = sequences, .cumulative_tokens = ends});
    EXPECT_EQ(output.shape(), (Shape{2 * kTokens, kHeads * kHeadDim}));
}

class ProjectedSources : public testing::TestWithParam<bool> {};

TEST_P(ProjectedSources, GiveTheBitsOfForwardInAnyCut) {
    for (const bool rope : {false, true}) {
        for (const bool masked : {false, true}) {
            SCOPED_TRACE(testing::Message() << "rope " << rope << ", mask " << masked);
            const bool batched = GetParam();
            CrossAttentionOptions options{
                .d_query = 5, .d_source = 7, .d_out = 16, .num_heads = 4, .qkv_bias = true, .num_kv_heads = 2};
            if (rope) {
                options.rope = RopeOptions{};
            }
            Generator generator(3);
            CrossAttention cross(options, generator);
            cross.eval();
            const Tensor source = drawn<float>(batched ? Shape{2, 9, 7} : Shape{9, 7}, 4);
            const Tensor queries = drawn<float>(batched ? Shape{2, 6, 5} : Shape{6, 5}, 5);
            std::vector<bool> mask(masked ? static_cast<std::size_t>(source.numel() / 7) : 0, true);
            if (masked) {
                mask[2] = mask.back() = false;
            }
            const Tensor expected = cross.forward(queries, source, {}, mask);
            const ProjectedSource<float> projected = cross.project_source(source, mask);
            EXPECT_EQ(cross.forward(queries, projected), expected);
            // One query at a time.
            const std::int64_t batch = batched ? 2 : 1;
            for (std::int64_t token = 0; token < 6; ++token) {
                Tensor query(batched ? Shape{2, 1, 5} : Shape{1, 5});
                for (std::int64_t b = 0; b < batch; ++b) {
                    std::copy_n(queries.data() + (b * 6 + token) * 5, 5, query.data() + b * 5);
                }
                const Tensor output = cross.forward(query, projected, {}, token);
                for (std::int64_t b = 0; b < batch; ++b) {
                    EXPECT_TRUE(std::equal(output.data() + b * 16, output.data() + (b + 1) * 16,
                                           expected.data() + (b * 6 + token) * 16))
                        << token;
                }
            }
        }
    }
}

TEST_P(ProjectedSources, ShowTheSameStepsInATrace) {
    const bool batched = GetParam();
    Generator generator(3);
    CrossAttention cross(
        {.d_query = 5, .d_source = 7, .d_out = 8, .num_heads = 2, .rope = RopeOptions{.rotary_dim = 2}}, generator);
    cross.eval();
    const Tensor source = drawn<float>(batched ? Shape{2, 9, 7} : Shape{9, 7}, 4);
    const Tensor queries = drawn<float>(batched ? Shape{2, 6, 5} : Shape{6, 5}, 5);
    Trace whole;
    (void)cross.forward(queries, source, {.trace = &whole});
    Trace trace;
    (void)cross.forward(queries, cross.project_source(source), {.trace = &trace});
    EXPECT_EQ(trace.entries().size() + 2, whole.entries().size());  // no source, no keys before the turn
    for (const auto& [name, tensor] : trace.entries()) {
        ASSERT_NE(whole.find(name), nullptr) << name;
        EXPECT_EQ(tensor, *whole.find(name)) << name;
    }
}

INSTANTIATE_TEST_SUITE_P(Inputs, ProjectedSources, testing::Bool(),
                         [](const auto& batched) { return batched.param ? "Batch" : "OneSequence"; });

TEST(ProjectedSourceErrors, OfAnotherBatchOrModule) {
    Generator generator(3);
    const CrossAttention cross({.d_query = 5, .d_source = 7, .d_out = 8, .num_heads = 2}, generator);
    const CrossAttention wider({.d_query = 5, .d_source = 7, .d_out = 12, .num_heads = 2}, generator);
    const ProjectedSource<float> two = cross.project_source(Tensor({2, 9, 7}));
    for (const Shape& queries : {Shape{3, 6, 5}, Shape{6, 5}, Shape{1, 6, 5}}) {
        EXPECT_ERROR(cross.forward(Tensor(queries), two), ErrorCode::shape_mismatch, "expected the same batch");
    }
    const ProjectedSource<float> one = cross.project_source(Tensor({9, 7}));
    EXPECT_ERROR(cross.forward(Tensor({1, 6, 5}), one), ErrorCode::shape_mismatch, "expected the same batch");
    ProjectedSource<float> altered = one;
    altered.source_mask.assign(8, true);
    EXPECT_ERROR(cross.forward(Tensor({6, 5}), altered), ErrorCode::shape_mismatch, "source_mask has 8 entries");
    EXPECT_ERROR(wider.forward(Tensor({2, 6, 5}), two), ErrorCode::shape_mismatch, "from project_source()");
    EXPECT_ERROR(cross.forward(Tensor({2, 6, 5}), ProjectedSource<float>{}), ErrorCode::shape_mismatch,
                 "projected source keys [0]");
    EXPECT_ERROR(cross.project_source(Tensor({2, 9, 6})), ErrorCode::shape_mismatch, "source has shape [2, 9, 6]");
    EXPECT_ERROR(cross.project_source(Tensor({2, 9, 7}), std::vector<bool>(17)), ErrorCode::shape_mismatch,
                 "source_mask has 17 entries; expected 18");
}

}  // namespace
}  // namespace qkv::nn
