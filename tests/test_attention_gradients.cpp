// Central differences in float64 through attention() itself, for every input and feature.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "support/small.hpp"

namespace qkv {
namespace {

using support::Small;

struct Feature {
    const char* name;
    std::function<void(AttentionOptions&)> set;
};

// Slopes, sinks and bias live here so that they can be moved by a step.
struct Parameters {
    std::vector<double> bias, slopes, sinks;
};

/// d loss / d x by (f(x + h) − f(x − h)) / 2h, compared with what backward says.
void check(const char* what, std::vector<double>& values, const std::vector<double>& gradient,
           const std::function<double()>& loss) {
    constexpr double kStep = 1e-5;
    ASSERT_EQ(values.size(), gradient.size());
    for (std::size_t at = 0; at < values.size(); ++at) {
        const double before = values[at];
        if (!std::isfinite(before)) {
            EXPECT_EQ(gradient[at], 0.0) << what;
            continue;
        }
        values[at] = before + kStep;
        const double above = loss();
        values[at] = before - kStep;
        const double below = loss();
        values[at] = before;
        EXPECT_NEAR(gradient[at], (above - below) / (2 * kStep), 1e-8 * (1 + std::fabs(gradient[at]))) << what << at;
    }
}

const ElementwiseScore kCubic{[](auto s, auto...) { return s + decltype(s)(0.01) * s * s * s; },
                              [](auto s, auto...) { return 1 + decltype(s)(0.03) * s * s; }};

void check_gradients(const AttentionOptions& base, const Shape4& bias_shape, const std::string& what) {
    SCOPED_TRACE(what);
    Small<double> p({.batch = 2, .heads = 4, .kv_heads = 2, .queries = 5, .keys = 7, .head_dim = 3, .value_dim = 2}, 7);
    support::Random random(11);
    Parameters parameters;
    parameters.bias =
        support::normals(random, bias_shape[0] * bias_shape[1] * bias_shape[2] * bias_shape[3], DType::f64);
    if (parameters.bias.size() > 1) {
        parameters.bias[1] = -std::numeric_limits<double>::infinity();
    }
    parameters.slopes = support::normals(random, 4, DType::f64, 0.3);
    parameters.sinks = support::normals(random, 4, DType::f64);

    AttentionOptions options = base;
    options.mask = base.mask & Mask::bias(view(parameters.bias.data(), bias_shape)) &
                   Mask::alibi(per_head(parameters.slopes.data(), 4));
    options.sinks = per_head(parameters.sinks.data(), 4);
    const auto loss = [&] {
        p.forward(options);
        return std::inner_product(p.out.begin(), p.out.end(), p.d_out.begin(), 0.0);
    };
    (void)loss();
    std::vector<double> dbias(parameters.bias.size()), dalibi(4), dsinks(4);
    AttentionGradients gradients = p.gradients();
    gradients.dbias = view(dbias.data(), bias_shape);
    gradients.dalibi = per_head(dalibi.data(), 4);
    gradients.dsinks = per_head(dsinks.data(), 4);
    attention_backward(p.q_view(), p.k_view(), p.v_view(), p.d_out_view(), p.saved(), gradients, options);
    check("q", p.q, p.dq, loss);
    check("k", p.k, p.dk, loss);
    check("v", p.v, p.dv, loss);
    check("bias", parameters.bias, dbias, loss);
    check("slopes", parameters.slopes, dalibi, loss);
    check("sinks", parameters.sinks, dsinks, loss);
}

TEST(AttentionGradients, AgreeWithDifferencesForEveryFeature) {
    static constexpr std::int64_t kBegin[] = {1, 0};
    static constexpr std::int64_t kEnd[] = {7, 4};
    static constexpr std::int64_t kStarts[] = {0, 1, 3, 4};
    static constexpr std::int64_t kBlocks[] = {1, 0, 2, 1};
    static bool allowed[] = {true, false, true, true, true, false, true};
    const BlockList blocks{2, 3, 1, 1, kStarts, kBlocks};
    const Feature features[] = {
        {"plain", [](auto&) {}},
        {"causal top-left", [](auto& o) { o.mask = Mask::causal(Align::top_left); }},
        {"causal bottom-right", [](auto& o) { o.mask = Mask::causal(Align::bottom_right) & Mask::key_end(kEnd); }},
        {"window", [](auto& o) { o.mask = Mask::window(1, 2, Align::bottom_right); }},
        {"key limits", [](auto& o) { o.mask = Mask::key_begin(kBegin) & Mask::key_end(kEnd); }},
        {"allowed", [](auto& o) { o.mask = Mask::allowed(view(allowed, {1, 1, 1, 7})); }},
        {"blocks", [&](auto& o) { o.mask = Mask::blocks(blocks); }},
        {"softcap", [](auto& o) { o.softcap = 1.5; }},
        {"scale", [](auto& o) { o.scale = -0.7; }},
        {"dropout", [](auto& o) { o.dropout = {.p = 0.4, .seed = 5, .keep = std::nullopt, .sequence_ids = {}}; }},
        {"score function", [](auto& o) { o.score_function = kCubic.function(); }},
        {"all",
         [&](auto& o) {
             o.mask = Mask::causal(Align::bottom_right) & Mask::key_begin(kBegin) & Mask::blocks(blocks);
             o.softcap = 3.0;
             o.dropout.p = 0.2;
             o.score_function = kCubic.function();
         }},
    };
    for (const Feature& feature : features) {
        AttentionOptions options;
        feature.set(options);
        check_gradients(options, {1, 4, 5, 7}, feature.name);
    }
}

TEST(AttentionGradients, OfABiasAddUpOverWhatItIsRepeatedAlong) {
    for (int repeated = 0; repeated < 16; ++repeated) {
        const Shape4 shape{(repeated & 1) != 0 ? 1 : 2, (repeated & 2) != 0 ? 1 : 4, (repeated & 4) != 0 ? 1 : 5,
                           (repeated & 8) != 0 ? 1 : 7};
        check_gradients({}, shape, to_string(Shape(shape.begin(), shape.end())));
    }
}

}  // namespace
}  // namespace qkv
