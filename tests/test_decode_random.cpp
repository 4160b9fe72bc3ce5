// Attention over caches: random calls with all features crossed, against the oracle over all keys. QKV_TEST_CASES sets
// their number.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "qkv/kv_cache.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"
#include "support/oracle.hpp"
#include "support/stored.hpp"

namespace qkv {
namespace {

using support::chance;
using support::pick;
using support::Random;
using support::Stored;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Some sequences of a cache, and a call over them; the oracle sees one dense problem per sequence.
struct DecodeCase {
    Random random;
    std::string summary;
    DType dtype = DType::f32, held = DType::f32, compute = DType::f32;
    std::int64_t kv_heads = 0, heads = 0, head_dim = 0, value_dim = 0, longest = 0, all_queries = 0, window = 0;
    bool packed = false;
    std::vector<oracle::Problem> dense;
    std::optional<KvCache> cache;
    std::vector<SequenceId> ids;
    std::vector<std::int64_t> starts{0}, key_begin, key_end;
    AttentionOptions options;
    std::optional<Stored> q, allowed, bias, slopes, sinks;

    explicit DecodeCase(std::uint64_t seed) : random(seed) {
        make_sizes();
        make_cache();
        make_queries();
        make_masks();
    }

    /// Row s of the views' first dimension and the first query of sequence s there.
    [[nodiscard]] std::int64_t row(std::size_t s) const { return packed ? 0 : static_cast<std::int64_t>(s); }
    [[nodiscard]] std::int64_t start(std::size_t s) const { return packed ? starts[s] : 0; }
    [[nodiscard]] Shape4 shape(std::int64_t last) const {
        return packed ? Shape4{1, heads, all_queries, last}
                      : Shape4{static_cast<std::int64_t>(dense.size()), heads, dense[0].queries, last};
    }
    [[nodiscard]] CacheBatch batch() const {
        return {ids, packed ? std::span<const std::int64_t>(starts) : std::span<const std::int64_t>()};
    }
    Stored result(std::int64_t last, DType type) {
        return support::allocate(shape(last), type, support::pick_layout(random), support::pick_side(random));
    }
    /// The rows of sequence s of a result, the last dimension cut to `last`.
    [[nodiscard]] std::vector<double> part(const Stored& stored, std::size_t s, std::int64_t last) const {
        ConstTensorView view = stored.view;
        view.data = view.at(row(s), 0, start(s), 0);
        view.shape = {1, heads, dense[s].queries, last};
        return support::read(view);
    }

private:
    void note(const std::string& feature) { summary += " " + feature; }

    void make_sizes() {
        constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};
        constexpr std::int64_t kDims[] = {1, 3, 8, 16, 24, 40, 48, 64};
        constexpr std::int64_t kSizes[] = {0, 1, 2, 15, 16, 17, 40, 64, 65, 130, 511, 512, 513, 700, 1100};
        constexpr std::int64_t kQueries[] = {1, 1, 1, 2, 3, 5, 17, 70};
        dtype = chance(random, 0.5) ? DType::f32 : kTypes[pick(random, 0, 3)];
        held = chance(random, 0.5) ? dtype : kTypes[pick(random, 0, 3)];
        compute = dtype == DType::f64 ? DType::f64 : DType::f32;
        kv_heads = pick(random, 1, 3);
        heads = kv_heads * (chance(random, 0.1) ? 23 : pick(random, 1, 4));
        head_dim = kDims[pick(random, 0, 7)];
        value_dim = chance(random, 0.6) ? head_dim : kDims[pick(random, 0, 7)];
        packed = chance(random, 0.5);
        const std::int64_t count = pick(random, 1, 3);
        const std::int64_t each = kQueries[pick(random, 0, 7)];
        for (std::int64_t s = 0; s < count; ++s) {
            oracle::Problem problem;
            problem.heads = heads;
            problem.kv_heads = kv_heads;
            problem.head_dim = head_dim;
            problem.value_dim = value_dim;
            problem.queries = packed ? (chance(random, 0.1) ? 0 : kQueries[pick(random, 0, 7)]) : each;
            problem.keys = kSizes[pick(random, 0, 14)];
            problem.score_rounding = dtype == DType::bf16 ? 0x1p-16 : dtype == DType::f16 ? 0x1p-13 : 1.0;
            longest = std::max(longest, problem.keys);
            all_queries += problem.queries;
            starts.push_back(all_queries);
            dense.push_back(problem);
        }
        note(std::string(name(dtype)) + " over " + name(held) + " H" + std::to_string(heads) + "/" +
             std::to_string(kv_heads) + " D" + std::to_string(head_dim) + "/" + std::to_string(value_dim) +
             (packed ? " packed" : ""));
        for (const oracle::Problem& p : dense) {
            note(std::to_string(p.queries) + "x" + std::to_string(p.keys));
        }
    }

    void make_cache() {
        const KvLayout layout{.kv_heads = kv_heads, .head_dim = head_dim, .value_dim = value_dim, .dtype = held};
        const std::int64_t block = std::int64_t{16} << pick(random, 0, 3);
        const auto count = static_cast<std::int64_t>(dense.size());
        const std::int64_t kind = pick(random, 0, 2);
        if (kind == 0) {
            cache = KvCache::contiguous(layout, {.capacity = std::max<std::int64_t>(1, longest), .sequences = count});
            note("contiguous");
        } else if (kind == 1) {
            cache = KvCache::paged(layout, {.blocks = count * (longest / block + 1), .block_tokens = block});
            note("paged " + std::to_string(block));
        } else {
            window = pick(random, 1, chance(random, 0.5) ? 60 : 700);
            cache = KvCache::windowed(layout,
                                      {.window = window, .max_append = 70, .sequences = count, .block_tokens = block});
            note("window " + std::to_string(window) + " " + std::to_string(block));
        }
        for (oracle::Problem& p : dense) {
            const SequenceId id = cache->add();
            ids.push_back(id);
            p.k = support::normals(random, kv_heads * p.keys * head_dim, held);
            p.v = support::normals(random, kv_heads * p.keys * value_dim, held);
            const Stored k = support::allocate({1, kv_heads, p.keys, head_dim}, held, support::pick_layout(random));
            const Stored v = support::allocate({1, kv_heads, p.keys, value_dim}, held, support::pick_layout(random));
            support::write(k.view, p.k);
            support::write(v.view, p.v);
            for (std::int64_t at = 0; at < p.keys;) {  // in pieces
                const std::int64_t tokens = std::min(p.keys - at, pick(random, 1, 200));
                const auto piece = [&](ConstTensorView view) {
                    view.data = view.at(0, 0, at, 0);
                    view.shape[2] = tokens;
                    return view;
                };
                cache->append({{&id, 1}}, piece(k.view), piece(v.view));
                at += tokens;
            }
        }
    }

    void make_queries() {
        q = support::allocate(shape(head_dim), dtype, support::pick_layout(random), support::pick_side(random));
        for (std::size_t s = 0; s < dense.size(); ++s) {
            oracle::Problem& p = dense[s];
            p.q = support::normals(random, heads * p.queries * head_dim, dtype);
            p.d_out.assign(static_cast<std::size_t>(heads * p.queries * value_dim), 0.0);
            TensorView view = q->view;
            view.data = view.at(row(s), 0, start(s), 0);
            view.shape = {1, heads, p.queries, head_dim};
            support::write(view, p.q);
            p.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
            p.allowed.assign(static_cast<std::size_t>(heads * p.queries * p.keys), 1);
        }
        if (chance(random, 0.2)) {
            options.scale = -0.4;
            for (oracle::Problem& p : dense) {
                p.scale = -0.4;
            }
            note("scale");
        }
        if (chance(random, 0.25)) {
            options.softcap = 3.0;
            for (oracle::Problem& p : dense) {
                p.softcap = 3.0;
            }
            note("softcap");
        }
        if (chance(random, 0.25)) {
            const std::vector<double> values = support::normals(random, heads, compute, 2.0);
            sinks = support::allocate({1, heads, 1, 1}, compute);
            support::write(sinks->view, values);
            options.sinks = sinks->view;
            for (oracle::Problem& p : dense) {
                p.sinks = values;
            }
            note("sinks");
        }
    }

    /// Takes away what keep(s, head, query row, position of the query, key) denies.
    template <class Keep>
    void restrict(Keep keep) {
        for (std::size_t s = 0; s < dense.size(); ++s) {
            oracle::Problem& p = dense[s];
            for (std::int64_t h = 0; h < heads; ++h) {
                for (std::int64_t i = 0; i < p.queries; ++i) {
                    for (std::int64_t j = 0; j < p.keys; ++j) {
                        if (!keep(s, h, i, p.keys - p.queries + i, j)) {
                            p.allowed[static_cast<std::size_t>(p.score_index(0, h, i, j))] = 0;
                        }
                    }
                }
            }
        }
    }

    void make_masks() {
        if (window > 0) {
            restrict([&](auto, auto, auto, std::int64_t position, auto j) { return j > position - window; });
        }
        if (chance(random, 0.6)) {
            const Align align = chance(random, 0.5) ? Align::bottom_right : Align::top_left;
            options.mask = options.mask & Mask::causal(align);
            restrict([&](auto, auto, auto, std::int64_t position, auto j) { return j <= position; });
            note("causal");
        }
        if (chance(random, 0.25)) {
            const std::int64_t left = pick(random, 0, 90);
            options.mask = options.mask & Mask::window(left, std::nullopt, Align::bottom_right);
            restrict([&](auto, auto, auto, std::int64_t position, auto j) { return j >= position - left; });
            note("left " + std::to_string(left));
        }
        if (chance(random, 0.2)) {
            for (const oracle::Problem& p : dense) {
                key_begin.push_back(pick(random, 0, p.keys));
            }
            options.mask = options.mask & Mask::key_begin(key_begin);
            restrict([&](std::size_t s, auto, auto, auto, auto j) { return j >= key_begin[s]; });
            note("key_begin");
        }
        if (chance(random, 0.2)) {
            const std::vector<double> values = support::normals(random, heads, compute, 0.02);
            slopes = support::allocate({1, heads, 1, 1}, compute);
            support::write(slopes->view, values);
            options.mask = options.mask & Mask::alibi(slopes->view);
            for (oracle::Problem& p : dense) {
                p.slopes = values;
                for (std::int64_t i = 0; i < p.queries; ++i) {
                    for (std::int64_t j = 0; j < p.keys; ++j) {
                        p.distance.push_back(static_cast<double>(std::abs(p.keys - p.queries + i - j)));
                    }
                }
            }
            note("alibi");
        }
        if (chance(random, 0.2)) {
            allowed = support::allocate(shape(longest), DType::boolean);
            restrict([&](std::size_t s, auto h, auto i, auto, auto j) {
                const bool keep = chance(random, 0.6);
                support::write_one(allowed->view, row(s), h, start(s) + i, j, keep ? 1.0 : 0.0);
                return keep;
            });
            options.mask = options.mask & Mask::allowed(allowed->view);
            note("allowed");
        }
        if (chance(random, 0.2)) {
            const DType type = compute == DType::f64 ? DType::f64 : DType::f32;
            bias = support::allocate(shape(longest), type);
            for (std::size_t s = 0; s < dense.size(); ++s) {
                oracle::Problem& p = dense[s];
                p.bias = support::normals(random, heads * p.queries * p.keys, type);
                for (std::int64_t h = 0; h < heads; ++h) {
                    for (std::int64_t i = 0; i < p.queries; ++i) {
                        for (std::int64_t j = 0; j < p.keys; ++j) {
                            double& value = p.bias[static_cast<std::size_t>(p.score_index(0, h, i, j))];
                            value = chance(random, 0.1) ? -kInfinity : value;
                            support::write_one(bias->view, row(s), h, start(s) + i, j, value);
                        }
                    }
                }
            }
            options.mask = options.mask & Mask::bias(bias->view);
            note("bias");
        }
    }
};

class DecodeRandom : public testing::TestWithParam<std::int64_t> {};

TEST_P(DecodeRandom, AgreesWithTheOracle) {
    const char* text = std::getenv("QKV_TEST_CASES");
    const std::int64_t cases = text == nullptr ? 120 : std::strtoll(text, nullptr, 10);
    for (std::int64_t number = GetParam(); number < cases && !HasFailure(); number += 4) {
        DecodeCase test(static_cast<std::uint64_t>(20261122 + number));
        SCOPED_TRACE("case " + std::to_string(number) + ":" + test.summary);
        const Runtime runtime(pick(test.random, 1, 4));
        const DType out_type = chance(test.random, 0.3) ? test.compute : test.dtype;
        const Stored out = test.result(test.value_dim, out_type);
        const Stored lse = test.result(1, test.compute);
        const Stored weights = test.result(test.longest, test.dtype);
        const Stored scores = test.result(test.longest, test.compute);
        AttentionExtras extras;
        extras.lse = lse.view;
        extras.weights = weights.view;
        extras.scores = scores.view;
        ASSERT_NO_THROW(attention(test.q->view, *test.cache, test.batch(), out.view, test.options, extras, runtime));
        for (std::size_t s = 0; s < test.dense.size(); ++s) {
            const oracle::Problem& p = test.dense[s];
            const oracle::Result exact = oracle::run(p, oracle::Arithmetic::exact);
            const oracle::Result plain = oracle::run(p, support::arithmetic(test.dtype));
            support::expect_rule("out", test.part(out, s, p.value_dim), exact.out, plain.out, test.dtype,
                                 exact.out_size);
            support::expect_rule("lse", test.part(lse, s, 1), exact.lse_with_sink, plain.lse_with_sink, test.compute,
                                 exact.lse_size);
            support::expect_rule("weights", test.part(weights, s, p.keys), exact.weights, plain.weights, test.dtype,
                                 exact.weights_size);
            support::expect_rule("scores", test.part(scores, s, p.keys), exact.masked, plain.masked, test.compute,
                                 exact.scores_size);
            const std::vector<double> whole = test.part(weights, s, test.longest);
            for (std::size_t at = 0; at < whole.size(); ++at) {
                if (static_cast<std::int64_t>(at) % test.longest >= p.keys) {
                    ASSERT_EQ(whole[at], 0.0) << "a weight beyond the sequence";
                }
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Shard, DecodeRandom, testing::Range(std::int64_t{0}, std::int64_t{4}));

}  // namespace
}  // namespace qkv
