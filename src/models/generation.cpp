#include "qkv/models/generation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.hpp"

namespace qkv::models {

namespace {

void check(const SampleOptions& options) {
    if (!std::isfinite(options.temperature) || options.temperature < 0) {
        fail(ErrorCode::invalid_argument, "temperature is ", options.temperature,
             "; expected a finite number, 0 or more");
    }
    if (options.top_k < 0) {
        fail(ErrorCode::invalid_argument, "top_k is ", options.top_k, "; expected 0 or more");
    }
    if (!(options.top_p > 0 && options.top_p <= 1)) {
        fail(ErrorCode::invalid_argument, "top_p is ", options.top_p, "; expected more than 0, at most 1");
    }
}

/// Uniform in [0, 1), as torch.rand in float64.
double uniform(Generator& generator) {
    return static_cast<double>(generator.random64() & ((std::uint64_t{1} << 53U) - 1)) * 0x1p-53;
}

}  // namespace

std::int64_t sample(std::span<const float> logits, const SampleOptions& options, Generator& generator) {
    check(options);
    if (logits.empty()) {
        fail(ErrorCode::shape_mismatch, "there are no logits to draw a token from; expected one or more");
    }
    std::vector<std::int64_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), std::int64_t{0});
    const auto logit = [logits](std::int64_t id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]); };
    for (const std::int64_t id : ids) {
        if (!(logit(id) < std::numeric_limits<double>::infinity())) {
            fail(ErrorCode::out_of_range, "the logit of token ", id, " is ", std::fabs(logit(id)),
                 "; expected a finite number");
        }
    }
    std::ranges::stable_sort(ids, std::ranges::greater(), logit);
    if (options.temperature == 0 || ids.size() == 1) {
        return ids.front();
    }
    if (options.top_k > 0) {
        ids.resize(std::min(ids.size(), static_cast<std::size_t>(options.top_k)));
    }
    std::vector<double> shares;
    double total = 0;
    for (const std::int64_t id : ids) {
        shares.push_back(std::exp((logit(id) - logit(ids.front())) / options.temperature));
        total += shares.back();
    }
    double kept = 0;
    std::size_t count = 0;
    while (count < shares.size() && (count == 0 || kept < options.top_p * total)) {
        kept += shares[count++];
    }
    double rest = uniform(generator) * kept;
    for (std::size_t i = 0; i + 1 < count; ++i) {
        rest -= shares[i];
        if (rest < 0) {
            return ids[i];
        }
    }
    return ids[count - 1];
}

Generation::Generation(const LanguageModel& model, std::span<const std::int64_t> prompt, const SampleOptions& options,
                       std::uint64_t seed, const Runtime& runtime)
    : model_(&model), options_(options), generator_(seed), runtime_(&runtime), cache_(model.gpt.options()) {
    check(options);
    const auto most = static_cast<std::size_t>(model.gpt.options().context_length);
    prompt = prompt.last(std::min(prompt.size(), most));
    unread_.assign(prompt.begin(), prompt.end());
}

std::int64_t Generation::next() {
    const nn::GptOptions& sizes = model_->gpt.options();
    std::int64_t token = 0;
    if (read_.empty() && unread_.empty()) {
        token = static_cast<std::int64_t>(uniform(generator_) * static_cast<double>(sizes.vocab_size));
    } else {
        const auto context = static_cast<std::size_t>(sizes.context_length);
        if (read_.size() + unread_.size() > context) {
            read_.insert(read_.end(), unread_.begin(), unread_.end());
            unread_.assign(read_.end() - static_cast<std::ptrdiff_t>((context + 1) / 2), read_.end());
            read_.clear();
            cache_.truncate(0, 0);
        }
        const Tensor logits = model_->gpt.forward(unread_, cache_, {.runtime = runtime_});  // [1, tokens, vocab_size]
        read_.insert(read_.end(), unread_.begin(), unread_.end());
        token = sample(logits.row(static_cast<std::int64_t>(unread_.size()) - 1), options_, generator_);
    }
    unread_.assign(1, token);
    return token;
}

}  // namespace qkv::models
