#include "explain/screen_notes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "explain/examples.hpp"
#include "explain/text_cells.hpp"
#include "qkv/nn/simple_attention.hpp"
#include "qkv/random.hpp"

namespace qkv::explain {

namespace {

std::int64_t size_of(const StageReport& stage, const char* tensor, std::int64_t dim) {
    return stage.tensors.find(tensor)->size(dim);
}

bool drops(const StageReport& stage) { return stage.tensors.find("dropped_weights") != nullptr; }

/// Seconds of the fastest of a few calls: the one that nothing else disturbed.
template <class Call>
double fastest_seconds(const Call& call) {
    double fastest = 1e9;
    for (int repeat = 0; repeat < 3; ++repeat) {
        const auto begin = std::chrono::steady_clock::now();
        call();
        fastest = std::min(fastest, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return fastest;
}

/// Loops against matrix product, on this sentence for equality and on a longer one for time.
std::string loops_against_product(const StageReport& stage) {
    const nn::SimpleSelfAttention simple(stage.normalise);
    const Tensor& x = *stage.tensors.find("inputs");
    std::string agreement;
    if (x.size(0) <= 64) {
        const Tensor product = simple.forward(x);
        const Tensor loops = simple.forward_loops(x);
        float difference = 0;
        for (std::int64_t i = 0; i < product.numel(); ++i) {
            difference = std::max(difference, std::fabs(product.data()[i] - loops.data()[i]));
        }
        agreement = difference == 0.0F ? "agree to the last bit here; "
                                       : fmt::format("differ by at most {:.0e} here (order of sums); ", difference);
    }
    constexpr std::int64_t kTokens = 192;
    constexpr std::int64_t kDim = 64;
    const Tensor longer = Generator(1).rand({kTokens, kDim});
    const double loops = fastest_seconds([&] { (void)simple.forward_loops(longer); });
    const double product = fastest_seconds([&] { (void)simple.forward(longer); });
    return fmt::format("Three loops and X Xᵀ as a matrix product {}on {} tokens of width {}: {:.1f} ms and {:.1f} ms.",
                       agreement, kTokens, kDim, loops * 1e3, product * 1e3);
}

/// The largest weight of the chosen row, for scores × 1, × 1000 and × −1000, naive and stable.
Lines naive_against_stable(const StageReport& stage, const TextStyle& style) {
    const std::span<const float> scores = row_of(*stage.tensors.find("scores"), 0, stage.query);
    const auto largest = [&](float factor, nn::Normalise how) {
        std::vector<float> scaled(scores.begin(), scores.end());
        for (float& score : scaled) {
            score *= factor;
        }
        const auto count = static_cast<std::int64_t>(scaled.size());
        const Tensor weights = nn::normalised(Tensor({count}, std::move(scaled)), how);
        float most = 0;
        for (const float weight : weights.values()) {
            most = std::isnan(weight) ? weight : std::max(most, weight);
        }
        return number(most, style.digits);
    };
    constexpr std::array kFactors{1.0F, 1000.0F, -1000.0F};
    constexpr std::array<std::string_view, 3> kTitles{"scores", "× 1000", "× −1000"};
    constexpr std::int64_t kNarrowLabel = 10;
    const bool narrow = style.width < 34 + 3 * (style.digits + 7);
    const std::int64_t cell = std::min<std::int64_t>(style.digits + 7, (style.width - kNarrowLabel) / 3);
    std::string header = padded("   largest weight of the row", 34, Align::left);
    std::string naive = padded("   naive   exp(s) / Σ exp(s)", 34, Align::left);
    std::string stable = padded("   stable  exp(s−max) / Σ exp(s−max)", 34, Align::left);
    if (narrow) {
        header = padded("   largest", kNarrowLabel, Align::left);
        naive = padded("   naive", kNarrowLabel, Align::left);
        stable = padded("   stable", kNarrowLabel, Align::left);
    } else {
        stable = padded("   stable  exp(s−m) / Σ exp(s−m)", 34, Align::left);
    }
    for (std::size_t i = 0; i < kFactors.size(); ++i) {
        header += padded(kTitles[i], cell, Align::right);
        naive += padded(largest(kFactors[i], nn::Normalise::naive_softmax), cell, Align::right);
        stable += padded(largest(kFactors[i], nn::Normalise::softmax), cell, Align::right);
    }
    return {header, naive, stable};
}

/// "Hello shiny sun": the nine exact products beside those of a worked example in circulation, slips marked.
Lines shiny_products(const StageReport& stage) {
    constexpr std::array<std::array<float, 3>, 3> kInCirculation{
        {{0.0779F, 0.2156F, 0.1057F}, {0.0504F, 0.1382F, 0.1972F}, {0.1237F, 0.3983F, 0.3390F}}};
    const Tensor& x = *stage.tensors.find("inputs");
    const std::span<const float> weights = row_of(*stage.tensors.find("weights"), 0, stage.query);
    Lines lines{"   weight × value, exact" + std::string(15, ' ') + "a worked example in circulation (* slip)"};
    for (std::int64_t dim = 0; dim < 3; ++dim) {
        std::string exact = "   ";
        std::string printed;
        float exact_sum = 0;
        float printed_sum = 0;
        for (std::size_t key = 0; key < 3; ++key) {
            const float product = weights[key] * x(static_cast<std::int64_t>(key), dim);
            const float other = kInCirculation.at(static_cast<std::size_t>(dim)).at(key);
            const bool slip = number(product, 4) != number(other, 4);
            exact_sum += product;
            printed_sum += other;
            exact += fmt::format("{}{}", key == 0 ? "" : " + ", number(product, 4));
            printed += fmt::format("{}{}{}", key == 0 ? "" : " + ", number(other, 4), slip ? "*" : " ");
        }
        const bool sum_slip = number(exact_sum, 4) != number(printed_sum, 4);
        lines.push_back(fmt::format("{} = {}   {}= {}{}", exact, number(exact_sum, 4), printed, number(printed_sum, 4),
                                    sum_slip ? "*" : ""));
    }
    return lines;
}

bool is_shiny_sun(const StageReport& stage) {
    const Example* sun = find_example("sun");
    return stage.stage == Stage::simple && stage.normalise == nn::Normalise::softmax && stage.query == 1 &&
           *stage.tensors.find("inputs") == sun->vectors;
}

Lines simple_notes(const StageReport& stage) {
    return {"Why softmax? s/Σs breaks on negative scores; exp(s−max) is positive and finite.",
            loops_against_product(stage)};
}

Lines self_notes(const StageReport& stage) {
    if (stage.init == nn::Init::uniform) {
        const std::int64_t d_k = size_of(stage, "keys", -1);
        return {
            "query: what am I looking for?  key: what do I contain?  value: what do I provide?  All three matrices "
            "are trained; here they are only drawn.",
            fmt::format("Why ÷√{0}? d = {0} is the width of a key (d_out, not d_in). A sum of d products has variance "
                        "d; dividing by √d keeps it 1, so that softmax does not saturate and gradients flow.",
                        d_k)};
    }
    return {
        "Linear layers keep W as [d_out, d_in] and multiply by its transpose: q = x W_queryᵀ (+ bias). They draw "
        "from ±1/√d_in instead of [0, 1), so scores start near 0 and the weights nearly even.",
        "Softmax runs along the keys, the last axis: each row sums to one, a column need not."};
}

Lines causal_notes(const StageReport& stage) {
    Lines notes{
        "Why −∞ first? exp(−∞) = 0 before the row is normalised, so it still sums to one. Zeroing weights "
        "afterwards leaves rows that sum to less than 1.",
        "The mask selects: multiplying would make 0 · ∞ = nan. The diagonal stays, a token sees itself."};
    if (drops(stage) && stage.dropout == 1) {
        notes.emplace_back("Dropout 1 drops every weight: nothing is left to scale.");
    } else if (drops(stage)) {
        notes.push_back(
            fmt::format("Dropout {0} zeroes weights and scales the kept ones by 1/(1−{0}) = {1:.4g}, so their "
                        "expected sum stays 1; a single row's is not.",
                        stage.dropout, 1.0 / (1.0 - stage.dropout)));
    } else if (stage.dropout == 0) {
        notes.push_back(
            "Dropout would zero weights at random and scale the kept by 1/(1−p), keeping the expected sum at 1: "
            "in training only, so --dropout without --train is idle.");
    }
    return notes;
}

Lines wrapper_notes(const StageReport& stage) {
    return {fmt::format(
                "Each head has its own three matrices and reads all {} columns of the input; their contexts stand "
                "side by side: {} heads × {} = {} columns.",
                size_of(stage, "inputs", -1), stage.heads, size_of(stage, "values", -1), size_of(stage, "context", -1)),
            "Why several heads? One softmax per query is one way of looking; heads can look for different things."};
}

Lines multi_head_notes(const StageReport& stage) {
    const std::int64_t tokens = size_of(stage, "inputs", 0);
    const std::int64_t d_out = size_of(stage, "context", -1);
    const std::int64_t head_dim = size_of(stage, "queries", -1);
    return {
        fmt::format("view [{0},{1}] → [{0},{2},{3}] cuts each token's row into heads; transpose → [{2},{0},{3}] puts "
                    "the heads first. view(heads, tokens, …) at once would mix tokens into heads.",
                    tokens, d_out, stage.heads, head_dim),
        fmt::format("Heads split d_out = {} ({} × {}), yet each reads all of d_in = {}. out_proj mixes them again.",
                    d_out, stage.heads, head_dim, size_of(stage, "inputs", -1))};
}

Lines cross_notes(const StageReport& stage) {
    return {fmt::format(
        "Which side asks? The sentence being written ({} rows); keys and values are the source it reads ({} "
        "columns).{} No mask: no source token is in the future.",
        stage.tokens.size(), stage.source_tokens.size(), drops(stage) ? "" : " Rows sum to one.")};
}

}  // namespace

std::string screen_title(const StageReport& stage) {
    if (stage.layer) {
        return fmt::format("LAYER {}   of a trained model", *stage.layer);
    }
    switch (stage.stage) {
        case Stage::simple:
            return "SIMPLE   attention without weights";
        case Stage::self:
            return stage.init == nn::Init::uniform ? "SELF   trainable matrices, raw"
                                                   : "SELF   trainable linear layers";
        case Stage::causal:
            return "CAUSAL   the future is hidden";
        case Stage::wrapper:
            return "WRAPPER   heads side by side";
        case Stage::multi_head:
            return "MULTI-HEAD   one projection, split";
        case Stage::cross:
            return "CROSS   reading another sequence";
    }
    return "";
}

std::string screen_formula(const StageReport& stage) {
    if (stage.stage == Stage::simple) {
        constexpr std::array<std::string_view, 3> kHow{"X Xᵀ / row sum", "naive softmax(X Xᵀ)", "softmax(X Xᵀ)"};
        return fmt::format("weights = {}   context = weights X     row = query, column = key",
                           kHow.at(static_cast<std::size_t>(stage.normalise)));
    }
    const std::int64_t head_dim = size_of(stage, "queries", -1);
    const bool masked = stage.tensors.find("masked") != nullptr;
    const std::string scores = fmt::format("{}/√{}", masked ? "mask(QKᵀ)" : "QKᵀ", head_dim);
    const std::string which =
        stage.heads > 1 ? fmt::format("weights of head {} of {}", stage.head + 1, stage.heads) : "weights";
    const char* axes = stage.stage == Stage::cross ? "row = query, column = source key" : "row = query, column = key";
    const std::string after = drops(stage) ? ", dropped" : "";
    const std::string sums = drops(stage) || stage.heads > 1 ? "" : ", row sums to 1";
    return fmt::format("{} = softmax({}){}      {}{}", which, scores, after, axes, sums);
}

std::string screen_facts(const StageReport& stage, std::int64_t room) {
    std::vector<std::string> facts;
    if (stage.stage == Stage::simple) {
        facts = {fmt::format("{} tokens", stage.tokens.size()), fmt::format("dim {}", size_of(stage, "inputs", -1))};
    } else {
        facts.push_back(stage.weights_file.empty() ? fmt::format("seed {}", stage.seed)
                                                   : clipped(printable(stage.weights_file), 24));
        // A wrapper's d_out is that of each head.
        const std::int64_t d_out = size_of(stage, stage.stage == Stage::wrapper ? "values" : "context", -1);
        facts.push_back(fmt::format("d_in {} → d_out {}", size_of(stage, "inputs", -1), d_out));
        if (stage.dropout > 0) {
            facts.push_back(fmt::format("dropout {}{}", stage.dropout, stage.training ? "" : " idle"));
        }
        if (stage.heads > 1) {
            facts.push_back(fmt::format("{} heads", stage.heads));
        }
        if (stage.dropout == 0 && stage.stage == Stage::causal) {
            facts.emplace_back("dropout 0");
        }
    }
    std::string shown;
    for (const std::string& fact : facts) {
        const std::string more = (shown.empty() ? "" : " · ") + fact;
        if (cell_width(shown) + cell_width(more) > room) {
            break;
        }
        shown += more;
    }
    return shown;
}

Lines joined_heads(const StageReport& stage, const TextStyle& style) {
    const std::span<const float> context = stage.tensors.find("context")->row(stage.query);
    const Tensor* output = stage.tensors.find("output");
    if (output == nullptr && stage.heads == 1) {
        return {};
    }
    if (output == nullptr || style.width < 60) {
        Lines lines{"   heads joined " + tuple(context, style.digits, style.width - 16)};
        if (output != nullptr) {
            lines.push_back("   → out_proj → " + tuple(output->row(stage.query), style.digits, style.width - 16));
        }
        return lines;
    }
    std::string line = "   heads joined " + tuple(context, style.digits, (style.width - 36) / 2);
    line += fmt::format(" → out_proj → {}",
                        tuple(output->row(stage.query), style.digits, style.width - cell_width(line) - 14));
    return {line};
}

Lines side_by_side(const StageReport& stage, const TextStyle& style) {
    if (stage.stage != Stage::simple) {
        return {};
    }
    Lines lines = naive_against_stable(stage, style);
    if (is_shiny_sun(stage) && style.width >= 80) {
        const Lines products = shiny_products(stage);
        lines.insert(lines.end(), products.begin(), products.end());
    }
    return lines;
}

Lines screen_notes(const StageReport& stage) {
    if (stage.layer) {
        return stage.remarks;  // what a stage is was said in the stages; a model needs the room for its rows
    }
    Lines notes;
    switch (stage.stage) {
        case Stage::simple:
            notes = simple_notes(stage);
            break;
        case Stage::self:
            notes = self_notes(stage);
            break;
        case Stage::causal:
            notes = causal_notes(stage);
            break;
        case Stage::wrapper:
            notes = wrapper_notes(stage);
            break;
        case Stage::multi_head:
            notes = multi_head_notes(stage);
            break;
        case Stage::cross:
            notes = cross_notes(stage);
            break;
    }
    notes.insert(notes.end(), stage.remarks.begin(), stage.remarks.end());
    return notes;
}

}  // namespace qkv::explain
