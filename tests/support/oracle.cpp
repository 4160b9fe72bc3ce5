#include "support/oracle.hpp"

#include <cmath>
#include <limits>

namespace oracle {

namespace {

/// A double with `bits` of significand, exponents from `lowest` (of the smallest normal) and `largest` finite value.
double round_significand(double value, int bits, int lowest, double largest) {
    if (value == 0.0 || !std::isfinite(value)) {
        return value;
    }
    const int exponent = std::max(std::ilogb(value), lowest);
    const double unit = std::ldexp(1.0, exponent - bits + 1);
    const double rounded = std::nearbyint(value / unit) * unit;
    return std::fabs(rounded) > largest ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

template <class Real>
class Run {
public:
    Run(const Problem& problem, Arithmetic arithmetic) : p_(problem), arithmetic_(arithmetic) {}

    Result run() {
        const auto size = [](auto... sizes) { return static_cast<std::size_t>((sizes * ... * 1)); };
        const std::size_t scores = size(p_.batch, p_.heads, p_.queries, p_.keys);
        const std::size_t rows = size(p_.batch, p_.heads, p_.queries);
        r_.out.resize(size(p_.batch, p_.heads, p_.queries, p_.value_dim));
        r_.lse.resize(rows);
        r_.lse_size.resize(rows);
        r_.out_size.resize(r_.out.size());
        r_.lse_with_sink.resize(rows);
        for (auto* tensor : {&r_.scaled, &r_.capped, &r_.masked, &r_.weights, &r_.dbias, &r_.dbias_size,
                             &r_.scores_size, &r_.weights_size}) {
            tensor->resize(scores);
        }
        dq_.resize(p_.q.size());
        dk_.resize(p_.k.size());
        dv_.resize(p_.v.size());
        r_.dsinks.assign(static_cast<std::size_t>(p_.heads), 0.0);
        r_.dslopes.assign(size(p_.batch, p_.heads), 0.0);
        r_.dq_size.assign(p_.q.size(), 0.0);
        r_.dk_size.assign(p_.k.size(), 0.0);
        r_.dv_size.assign(p_.v.size(), 0.0);
        r_.dsinks_size = r_.dsinks;
        r_.dslopes_size = r_.dslopes;
        for (std::int64_t b = 0; b < p_.batch; ++b) {
            for (std::int64_t h = 0; h < p_.heads; ++h) {
                for (std::int64_t i = 0; i < p_.queries; ++i) {
                    row(b, h, i);
                }
            }
        }
        finish(dq_, r_.dq);
        finish(dk_, r_.dk);
        finish(dv_, r_.dv);
        return r_;
    }

private:
    [[nodiscard]] Real round(Real value) const {
        if (arithmetic_ == Arithmetic::bf16 || arithmetic_ == Arithmetic::f16) {
            return static_cast<Real>(round_to(static_cast<double>(value), arithmetic_));
        }
        return value;
    }

    void finish(const std::vector<Real>& sums, std::vector<double>& out) const {
        for (const Real sum : sums) {
            out.push_back(static_cast<double>(round(sum)));
        }
    }

    static Real at(const std::vector<double>& tensor, std::int64_t index) {
        return static_cast<Real>(tensor[static_cast<std::size_t>(index)]);
    }

    void row(std::int64_t b, std::int64_t h, std::int64_t i) {
        const std::int64_t kv_head = h / (p_.heads / p_.kv_heads);
        const std::int64_t q_row = ((b * p_.heads + h) * p_.queries + i) * p_.head_dim;
        const std::int64_t o_row = ((b * p_.heads + h) * p_.queries + i) * p_.value_dim;
        const std::int64_t k_head = (b * p_.kv_heads + kv_head) * p_.keys;
        const auto row_index = static_cast<std::size_t>((b * p_.heads + h) * p_.queries + i);
        constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
        const auto n = static_cast<std::size_t>(p_.keys);
        std::vector<Real> capped(n), before(n), score(n), weight(n), gradient(n);
        std::vector<double> score_size(n);  // of the terms that make up the score
        std::vector<bool> masked(n);

        // Scores.
        Real max = -kInfinity;
        for (std::int64_t j = 0; j < p_.keys; ++j) {
            const auto c = static_cast<std::size_t>(j);
            const auto s_index = static_cast<std::size_t>(p_.score_index(b, h, i, j));
            Real dot = 0;
            double dot_size = 0;
            for (std::int64_t d = 0; d < p_.head_dim; ++d) {
                const Real term = at(p_.q, q_row + d) * at(p_.k, (k_head + j) * p_.head_dim + d);
                dot += term;
                dot_size += std::fabs(static_cast<double>(term));
            }
            Real s = round(dot * static_cast<Real>(p_.scale));
            r_.scaled[s_index] = static_cast<double>(s);
            score_size[c] = std::fabs(p_.scale) * dot_size;
            if (p_.softcap > 0) {
                const Real cap = static_cast<Real>(p_.softcap);
                s = round(cap * std::tanh(s / cap));
                score_size[c] += std::fabs(static_cast<double>(s));
            }
            capped[c] = s;
            r_.capped[s_index] = static_cast<double>(s);
            masked[c] = p_.allowed[s_index] == 0;
            if (!p_.bias.empty()) {
                masked[c] = masked[c] || p_.bias[s_index] == -std::numeric_limits<double>::infinity();
                score_size[c] += std::fabs(p_.bias[s_index]);
                s = round(s + at(p_.bias, static_cast<std::int64_t>(s_index)));
            }
            if (!p_.slopes.empty()) {
                const Real slope =
                    at(p_.slopes, b * p_.heads + h) * at(p_.distance, (b * p_.queries + i) * p_.keys + j);
                s = round(s - slope);
                score_size[c] += std::fabs(static_cast<double>(slope));
            }
            before[c] = s;
            if (p_.function) {
                s = round(static_cast<Real>(p_.function(static_cast<double>(s), b, h, i, j)));
                score_size[c] += std::fabs(static_cast<double>(s));
            }
            score[c] = masked[c] ? -kInfinity : s;
            r_.masked[s_index] = static_cast<double>(score[c]);
            if (!masked[c]) {
                r_.scores_size[s_index] = score_size[c];
                r_.lse_size[row_index] = std::max(r_.lse_size[row_index], score_size[c]);
            }
            max = std::max(max, score[c]);
        }

        // Softmax; the sink is one more score without a value.
        const bool sink = !p_.sinks.empty();
        const Real sink_score = sink ? at(p_.sinks, h) : -kInfinity;
        const Real max_with_sink = std::max(max, sink_score);
        Real sum = 0;
        Real sum_without_sink = 0;
        for (std::size_t c = 0; c < n; ++c) {
            weight[c] = masked[c] ? Real(0) : std::exp(score[c] - max_with_sink);
            sum += weight[c];
            sum_without_sink += masked[c] ? Real(0) : std::exp(score[c] - max);
        }
        const Real sink_weight = sink && sink_score != -kInfinity ? std::exp(sink_score - max_with_sink) : Real(0);
        sum += sink_weight;
        r_.lse[row_index] = static_cast<double>(max == -kInfinity ? -kInfinity : max + std::log(sum_without_sink));
        r_.lse_with_sink[row_index] =
            static_cast<double>(max_with_sink == -kInfinity ? -kInfinity : max_with_sink + std::log(sum));
        r_.lse_size[row_index] +=
            std::isfinite(r_.lse_with_sink[row_index]) ? std::fabs(r_.lse_with_sink[row_index]) : 0.0;
        // A weight exp(score − lse) is as uncertain as its exponent.
        const auto uncertain = [&](std::size_t c) {
            return 1.0 + p_.score_rounding * (score_size[c] + std::fabs(r_.lse_with_sink[row_index]));
        };
        std::vector<Real> factor(n, Real(1));
        for (std::int64_t j = 0; j < p_.keys; ++j) {
            const auto c = static_cast<std::size_t>(j);
            weight[c] = sum == Real(0) ? Real(0) : round(weight[c] / sum);
            r_.weights[static_cast<std::size_t>(p_.score_index(b, h, i, j))] = static_cast<double>(weight[c]);
            r_.weights_size[static_cast<std::size_t>(p_.score_index(b, h, i, j))] =
                masked[c] ? 0.0 : static_cast<double>(weight[c]) * uncertain(c);
            if (!p_.factors.empty()) {
                factor[c] = at(p_.factors, p_.score_index(b, h, i, j));
            }
        }

        // Context.
        for (std::int64_t d = 0; d < p_.value_dim; ++d) {
            Real context = 0;
            for (std::int64_t j = 0; j < p_.keys; ++j) {
                const auto c = static_cast<std::size_t>(j);
                if (!masked[c]) {
                    const Real term = round(weight[c] * factor[c]) * at(p_.v, (k_head + j) * p_.value_dim + d);
                    context += term;
                    r_.out_size[static_cast<std::size_t>(o_row + d)] +=
                        uncertain(c) * std::fabs(static_cast<double>(term));
                }
            }
            r_.out[static_cast<std::size_t>(o_row + d)] = static_cast<double>(round(context));
        }

        // Backward: softmax's Jacobian as it stands, sum and all.
        Real expectation = 0;
        double delta_size = 0;
        for (std::int64_t d = 0; d < p_.value_dim; ++d) {
            delta_size += std::fabs(p_.d_out[static_cast<std::size_t>(o_row + d)]) *
                          r_.out_size[static_cast<std::size_t>(o_row + d)];
        }
        for (std::int64_t j = 0; j < p_.keys; ++j) {
            const auto c = static_cast<std::size_t>(j);
            if (masked[c]) {
                continue;
            }
            Real dp = 0;
            for (std::int64_t d = 0; d < p_.value_dim; ++d) {
                const Real d_out = at(p_.d_out, o_row + d);
                dp += d_out * at(p_.v, (k_head + j) * p_.value_dim + d);
                dv_[static_cast<std::size_t>((k_head + j) * p_.value_dim + d)] += round(weight[c] * factor[c]) * d_out;
                r_.dv_size[static_cast<std::size_t>((k_head + j) * p_.value_dim + d)] +=
                    uncertain(c) * static_cast<double>(weight[c] * factor[c] * std::fabs(d_out));
            }
            gradient[c] = round(factor[c] * round(dp));
            expectation += weight[c] * gradient[c];
        }
        if (sink && sum != Real(0)) {
            r_.dsinks[static_cast<std::size_t>(h)] -= static_cast<double>(sink_weight / sum * expectation);
            r_.dsinks_size[static_cast<std::size_t>(h)] +=
                static_cast<double>(sink_weight / sum) * delta_size *
                (1.0 + p_.score_rounding *
                           (std::fabs(static_cast<double>(sink_score)) + std::fabs(r_.lse_with_sink[row_index])));
        }
        for (std::int64_t j = 0; j < p_.keys; ++j) {
            const auto c = static_cast<std::size_t>(j);
            if (masked[c]) {
                continue;
            }
            Real ds = round(weight[c] * (gradient[c] - expectation));
            double ds_size = uncertain(c) * static_cast<double>(weight[c]) *
                             (static_cast<double>(std::fabs(gradient[c])) + delta_size);
            if (p_.derivative) {
                const double slope = p_.derivative(static_cast<double>(before[c]), b, h, i, j);
                ds = round(ds * static_cast<Real>(slope));
                ds_size *= std::fabs(slope);
            }
            r_.dbias[static_cast<std::size_t>(p_.score_index(b, h, i, j))] = static_cast<double>(ds);
            r_.dbias_size[static_cast<std::size_t>(p_.score_index(b, h, i, j))] = ds_size;
            if (!p_.slopes.empty()) {
                r_.dslopes[static_cast<std::size_t>(b * p_.heads + h)] -=
                    static_cast<double>(ds * at(p_.distance, (b * p_.queries + i) * p_.keys + j));
                r_.dslopes_size[static_cast<std::size_t>(b * p_.heads + h)] +=
                    ds_size * p_.distance[static_cast<std::size_t>((b * p_.queries + i) * p_.keys + j)];
            }
            if (p_.softcap > 0) {
                const Real t = capped[c] / static_cast<Real>(p_.softcap);
                ds = round(ds * (1 - t * t));
            }
            ds = round(ds * static_cast<Real>(p_.scale));
            ds_size *= std::fabs(p_.scale);
            for (std::int64_t d = 0; d < p_.head_dim; ++d) {
                r_.dq_size[static_cast<std::size_t>(q_row + d)] +=
                    ds_size * std::fabs(p_.k[static_cast<std::size_t>((k_head + j) * p_.head_dim + d)]);
                r_.dk_size[static_cast<std::size_t>((k_head + j) * p_.head_dim + d)] +=
                    ds_size * std::fabs(p_.q[static_cast<std::size_t>(q_row + d)]);
                dq_[static_cast<std::size_t>(q_row + d)] += ds * at(p_.k, (k_head + j) * p_.head_dim + d);
                dk_[static_cast<std::size_t>((k_head + j) * p_.head_dim + d)] += ds * at(p_.q, q_row + d);
            }
        }
    }

    const Problem& p_;
    Arithmetic arithmetic_;
    Result r_;
    std::vector<Real> dq_, dk_, dv_;
};

}  // namespace

double round_to(double value, Arithmetic arithmetic) {
    switch (arithmetic) {
        case Arithmetic::bf16:
            return round_significand(value, 8, -126, 3.3895313892515355e38);
        case Arithmetic::f16:
            return round_significand(value, 11, -14, 65504.0);
        case Arithmetic::f32:
            return static_cast<double>(static_cast<float>(value));
        default:
            return value;
    }
}

Result run(const Problem& problem, Arithmetic arithmetic) {
    switch (arithmetic) {
        case Arithmetic::exact:
            return Run<long double>(problem, arithmetic).run();
        case Arithmetic::f64:
            return Run<double>(problem, arithmetic).run();
        default:
            return Run<float>(problem, arithmetic).run();
    }
}

std::uint32_t philox(const std::uint32_t (&counter)[4], std::uint64_t key, int which) {
    std::uint64_t x[4] = {counter[0], counter[1], counter[2], counter[3]};
    std::uint64_t k[2] = {key & 0xFFFFFFFFU, key >> 32U};
    for (int round = 1; round <= 10; ++round) {
        const std::uint64_t high0 = (x[0] * 0xD2511F53U) >> 32U;
        const std::uint64_t low0 = (x[0] * 0xD2511F53U) & 0xFFFFFFFFU;
        const std::uint64_t high1 = (x[2] * 0xCD9E8D57U) >> 32U;
        const std::uint64_t low1 = (x[2] * 0xCD9E8D57U) & 0xFFFFFFFFU;
        const std::uint64_t next0 = high1 ^ x[1] ^ k[0];
        const std::uint64_t next2 = high0 ^ x[3] ^ k[1];
        x[0] = next0;
        x[1] = low1;
        x[2] = next2;
        x[3] = low0;
        k[0] = (k[0] + 0x9E3779B9U) & 0xFFFFFFFFU;
        k[1] = (k[1] + 0xBB67AE85U) & 0xFFFFFFFFU;
    }
    return static_cast<std::uint32_t>(x[which]);
}

}  // namespace oracle
