#include "attention/rope_frequencies.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.hpp"
#include "core/float_environment.hpp"

namespace qkv::detail {

namespace {

void check_factor(double factor) {
    if (!(factor >= 1.0 && std::isfinite(factor))) {
        fail(ErrorCode::invalid_argument, "rope scaling.factor is ", factor, "; expected a number of at least 1");
    }
}

void check_context(std::int64_t context) {
    if (context < 1) {
        fail(ErrorCode::invalid_argument, "rope scaling.original_context is ", context, "; expected at least 1");
    }
}

void check_rising(const char* low_name, double low, const char* high_name, double high) {
    if (!(low > 0.0 && high > low && std::isfinite(high))) {
        fail(ErrorCode::invalid_argument, "rope scaling.", low_name, " is ", low, " and scaling.", high_name, " is ",
             high, "; expected 0 < ", low_name, " < ", high_name);
    }
}

void check_finite(const char* name, double value) {
    if (!std::isfinite(value)) {
        fail(ErrorCode::invalid_argument, "rope scaling.", name, " is ", value, "; expected a finite number");
    }
}

/// NTK's exponent R/(R−2) has no value for one pair.
void check_two_pairs(std::int64_t rotary_dim) {
    if (rotary_dim < 4) {
        fail(ErrorCode::invalid_argument, "rope rotary_dim is ", rotary_dim,
             "; expected at least 4 with an NTK scaling, which spreads over the pairs");
    }
}

struct Check {
    std::int64_t rotary_dim;

    void operator()(const std::monostate&) const {}
    void operator()(const RopeLinear& linear) const { check_factor(linear.factor); }
    void operator()(const RopeNtk& ntk) const {
        check_factor(ntk.factor);
        check_two_pairs(rotary_dim);
    }
    void operator()(const RopeDynamicNtk& ntk) const {
        check_factor(ntk.factor);
        check_context(ntk.original_context);
        check_two_pairs(rotary_dim);
    }
    void operator()(const RopeYarn& yarn) const {
        check_factor(yarn.factor);
        check_context(yarn.original_context);
        check_rising("beta_slow", yarn.beta_slow, "beta_fast", yarn.beta_fast);
        check_finite("mscale", yarn.mscale);
        check_finite("mscale_all_dim", yarn.mscale_all_dim);
        check_finite("attention_factor", rope_attention_factor(yarn));
    }
    void operator()(const RopeLlama3& llama) const {
        check_factor(llama.factor);
        check_context(llama.original_context);
        check_rising("low_freq_factor", llama.low_freq_factor, "high_freq_factor", llama.high_freq_factor);
    }
};

/// Frequencies of a base, changed pair by pair.
struct Frequencies {
    double base;
    std::int64_t rotary_dim;
    std::int64_t length;

    [[nodiscard]] std::vector<double> of_base(double changed_base) const {
        std::vector<double> frequencies(static_cast<std::size_t>(rotary_dim / 2));
        for (std::size_t pair = 0; pair < frequencies.size(); ++pair) {
            frequencies[pair] =
                std::pow(changed_base, -2.0 * static_cast<double>(pair) / static_cast<double>(rotary_dim));
        }
        return frequencies;
    }
    /// A base under which the slowest pair, of exponent (R−2)/R, is `factor` times as slow.
    [[nodiscard]] std::vector<double> slowed(double factor) const {
        const auto dim = static_cast<double>(rotary_dim);
        return of_base(base * std::pow(factor, dim / (dim - 2.0)));
    }

    std::vector<double> operator()(const std::monostate&) const { return of_base(base); }
    std::vector<double> operator()(const RopeLinear& linear) const {
        std::vector<double> frequencies = of_base(base);
        for (double& frequency : frequencies) {
            frequency /= linear.factor;
        }
        return frequencies;
    }
    std::vector<double> operator()(const RopeNtk& ntk) const { return slowed(ntk.factor); }
    std::vector<double> operator()(const RopeDynamicNtk& ntk) const {
        const double longer =
            static_cast<double>(std::max(length, ntk.original_context)) / static_cast<double>(ntk.original_context);
        return slowed(ntk.factor * longer - (ntk.factor - 1.0));
    }
    std::vector<double> operator()(const RopeYarn& yarn) const {
        // The pair, as a real number, that turns so many times over the original context.
        const auto pair_of = [&](double turns) {
            const double context = static_cast<double>(yarn.original_context);
            return static_cast<double>(rotary_dim) * std::log(context / (turns * 2.0 * std::numbers::pi)) /
                   (2.0 * std::log(base));
        };
        double first = pair_of(yarn.beta_fast);
        double last = pair_of(yarn.beta_slow);
        if (yarn.truncate) {
            first = std::floor(first);
            last = std::ceil(last);
        }
        first = std::max(first, 0.0);
        last = std::min(last, static_cast<double>(rotary_dim - 1));
        if (first == last) {
            last += 0.001;  // a step instead of 0/0, as wide as Hugging Face has it
        }
        std::vector<double> frequencies = of_base(base);
        for (std::size_t pair = 0; pair < frequencies.size(); ++pair) {
            const double ramp = std::clamp((static_cast<double>(pair) - first) / (last - first), 0.0, 1.0);
            frequencies[pair] *= ramp / yarn.factor + (1.0 - ramp);
        }
        return frequencies;
    }
    std::vector<double> operator()(const RopeLlama3& llama) const {
        std::vector<double> frequencies = of_base(base);
        for (double& frequency : frequencies) {
            const double turns = static_cast<double>(llama.original_context) * frequency / (2.0 * std::numbers::pi);
            const double kept = std::clamp(
                (turns - llama.low_freq_factor) / (llama.high_freq_factor - llama.low_freq_factor), 0.0, 1.0);
            frequency *= (1.0 - kept) / llama.factor + kept;
        }
        return frequencies;
    }
};

}  // namespace

void check_rope_options(const RopeOptions& options, std::int64_t rotary_dim) {
    if (!(options.base > 1.0 && std::isfinite(options.base))) {
        fail(ErrorCode::invalid_argument, "rope base is ", options.base, "; expected a number above 1");
    }
    std::visit(Check{rotary_dim}, options.scaling);
}

std::vector<double> rope_frequencies(const RopeOptions& options, std::int64_t rotary_dim, std::int64_t length) {
    const FloatEnvironment environment;
    return std::visit(Frequencies{options.base, rotary_dim, length}, options.scaling);
}

double rope_attention_factor(const RopeScaling& scaling) {
    const auto* yarn = std::get_if<RopeYarn>(&scaling);
    if (yarn == nullptr) {
        return 1.0;
    }
    const FloatEnvironment environment;
    const auto grown = [yarn](double by) { return 0.1 * by * std::log(yarn->factor) + 1.0; };
    if (yarn->attention_factor) {
        return *yarn->attention_factor;
    }
    return yarn->mscale != 0.0 && yarn->mscale_all_dim != 0.0 ? grown(yarn->mscale) / grown(yarn->mscale_all_dim)
                                                              : grown(1.0);
}

}  // namespace qkv::detail
