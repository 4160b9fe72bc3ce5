// Random problems with all features crossed, against the oracle. QKV_TEST_CASES sets their number (default 1000),
// QKV_TEST_SEED the first seed.
#include <gtest/gtest.h>

#include <cstdlib>

#include "support/attention_case.hpp"
#include "support/compare.hpp"

namespace qkv {
namespace {

using support::AttentionCase;
using support::expect_rule;
using support::read;
using support::Stored;

constexpr std::int64_t kShards = 8;

std::int64_t from_environment(const char* name, std::int64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

/// Sums a dense [B, Hq, Tq, Tk] tensor over the dimensions where `shape` has 1.
std::vector<double> reduce(const std::vector<double>& dense, const Shape4& full, const Shape4& shape) {
    std::vector<double> sums(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]), 0.0);
    std::size_t at = 0;
    for (std::int64_t b = 0; b < full[0]; ++b) {
        for (std::int64_t h = 0; h < full[1]; ++h) {
            for (std::int64_t i = 0; i < full[2]; ++i) {
                for (std::int64_t j = 0; j < full[3]; ++j) {
                    const std::int64_t to = (((shape[0] == 1 ? 0 : b) * shape[1] + (shape[1] == 1 ? 0 : h)) * shape[2] +
                                             (shape[2] == 1 ? 0 : i)) *
                                                shape[3] +
                                            (shape[3] == 1 ? 0 : j);
                    sums[static_cast<std::size_t>(to)] += dense[at++];
                }
            }
        }
    }
    return sums;
}

struct Expected {
    explicit Expected(const AttentionCase& test)
        : exact(oracle::run(test.dense, oracle::Arithmetic::exact)), plain(oracle::run(test.dense, test.plain())) {}
    oracle::Result exact;
    oracle::Result plain;
};

void check_forward(AttentionCase& test, const Expected& expected, const Runtime& runtime, Stored& out, Stored& lse) {
    const oracle::Problem& dense = test.dense;
    const Shape4 score_shape{dense.batch, dense.heads, dense.queries, dense.keys};
    const Stored weights = test.result(score_shape, test.dtype);
    const Stored scores = test.result(score_shape, test.compute);
    AttentionExtras extras;
    extras.lse = lse.view;
    extras.weights = weights.view;
    extras.scores = scores.view;
    attention(test.q.view, test.k.view, test.v.view, out.view, test.options, extras, runtime);
    expect_rule("out", read(out.view), expected.exact.out, expected.plain.out, out.view.dtype, expected.exact.out_size);
    expect_rule("lse", read(lse.view), expected.exact.lse_with_sink, expected.plain.lse_with_sink, test.compute,
                expected.exact.lse_size);
    expect_rule("weights", read(weights.view), expected.exact.weights, expected.plain.weights, test.dtype,
                expected.exact.weights_size);
    expect_rule("scores", read(scores.view), expected.exact.masked, expected.plain.masked, test.compute,
                expected.exact.scores_size);
    extras.lse_counts_sinks = false;
    attention(test.q.view, test.k.view, test.v.view, out.view, test.options, extras, runtime);
    expect_rule("lse without sinks", read(lse.view), expected.exact.lse, expected.plain.lse, test.compute,
                expected.exact.lse_size);
}

void check_backward(AttentionCase& test, const Expected& expected, const Runtime& runtime, const Stored& out,
                    const Stored& lse) {
    const oracle::Problem& dense = test.dense;
    const Shape4 score_shape{dense.batch, dense.heads, dense.queries, dense.keys};
    const Stored dq = test.result(test.q.view.shape, test.dtype);
    const Stored dk = test.result(test.k.view.shape, test.dtype);
    const Stored dv = test.result(test.v.view.shape, test.dtype);
    const Stored dbias = test.result(test.bias_shape, test.compute);
    const Stored dalibi = test.result(test.slopes_shape, test.compute);
    const Stored dsinks = test.result({1, dense.heads, 1, 1}, test.compute);
    const AttentionSaved saved{.lse = lse.view, .lse_counts_sinks = false, .out = out.view, .delta = std::nullopt};
    AttentionGradients gradients{.dq = dq.view,
                                 .dk = dk.view,
                                 .dv = dv.view,
                                 .dbias = std::nullopt,
                                 .dsinks = std::nullopt,
                                 .dalibi = std::nullopt,
                                 .workspace = {}};
    if (test.bias) {
        gradients.dbias = dbias.view;
    }
    if (test.slopes) {
        gradients.dalibi = dalibi.view;
    }
    if (test.sinks) {
        gradients.dsinks = dsinks.view;
    }
    attention_backward(test.q.view, test.k.view, test.v.view, test.d_out.view, saved, gradients, test.options, runtime);
    expect_rule("dq", read(dq.view), expected.exact.dq, expected.plain.dq, test.dtype, expected.exact.dq_size);
    expect_rule("dk", read(dk.view), expected.exact.dk, expected.plain.dk, test.dtype, expected.exact.dk_size);
    expect_rule("dv", read(dv.view), expected.exact.dv, expected.plain.dv, test.dtype, expected.exact.dv_size);
    if (test.bias) {
        expect_rule("dbias", read(dbias.view), reduce(expected.exact.dbias, score_shape, test.bias_shape),
                    reduce(expected.plain.dbias, score_shape, test.bias_shape), test.dtype,
                    reduce(expected.exact.dbias_size, score_shape, test.bias_shape));
    }
    if (test.slopes) {
        const Shape4 full{dense.batch, dense.heads, 1, 1};
        expect_rule("dalibi", read(dalibi.view), reduce(expected.exact.dslopes, full, test.slopes_shape),
                    reduce(expected.plain.dslopes, full, test.slopes_shape), test.dtype,
                    reduce(expected.exact.dslopes_size, full, test.slopes_shape));
    }
    if (test.sinks) {
        expect_rule("dsinks", read(dsinks.view), expected.exact.dsinks, expected.plain.dsinks, test.dtype,
                    expected.exact.dsinks_size);
    }
}

class AttentionRandom : public testing::TestWithParam<std::int64_t> {};

TEST_P(AttentionRandom, AgreesWithTheOracle) {
    const std::int64_t cases = from_environment("QKV_TEST_CASES", 1000);
    const std::int64_t first = from_environment("QKV_TEST_SEED", 20261122);
    RecordProperty("first_seed", std::to_string(first));
    std::cout << "QKV_TEST_SEED=" << first << " QKV_TEST_CASES=" << cases << '\n';
    for (std::int64_t number = GetParam(); number < cases && !HasFailure(); number += kShards) {
        AttentionCase test(static_cast<std::uint64_t>(first + number));
        SCOPED_TRACE("seed " + std::to_string(test.seed) + ": " + test.summary);
        const Expected expected(test);
        const Runtime runtime(test.threads);
        const oracle::Problem& dense = test.dense;
        Stored out = test.result({dense.batch, dense.heads, dense.queries, dense.value_dim}, test.dtype);
        Stored lse = test.result({dense.batch, dense.heads, dense.queries, 1}, test.compute);
        ASSERT_NO_THROW(check_forward(test, expected, runtime, out, lse));
        ASSERT_NO_THROW(check_backward(test, expected, runtime, out, lse));
    }
}

INSTANTIATE_TEST_SUITE_P(Shard, AttentionRandom, testing::Range(std::int64_t{0}, kShards));

}  // namespace
}  // namespace qkv
