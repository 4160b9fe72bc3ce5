#include "explain/model_layers.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/check.hpp"
#include "core/utf8.hpp"
#include "explain/inputs.hpp"
#include "qkv/models/language_model.hpp"

namespace qkv::explain {

namespace {

/// These say how stages are drawn or fed; a model brings all of it.
void check_options(const Request& request) {
    const std::pair<bool, const char*> others[] = {
        {request.example.has_value(), "--example"},
        {request.tokens.has_value(), "--tokens"},
        {request.embeddings.has_value(), "--embeddings"},
        {request.dim.has_value(), "--dim"},
        {request.source.has_value(), "--source"},
        {request.source_embeddings.has_value(), "--source-embeddings"},
        {request.weights.has_value(), "--weights"},
        {request.init.has_value(), "--init"},
        {request.d_out.has_value(), "--d-out"},
        {request.heads.has_value(), "--heads"},
        {request.context_length.has_value(), "--context-length"},
        {request.qkv_bias, "--qkv-bias"},
        {request.seed.has_value(), "--seed"},
        {request.dropout.has_value(), "--dropout"},
        {request.train, "--train"},
        {request.normalise.has_value(), "--normalise"},
    };
    for (const auto& [given, option] : others) {
        if (given) {
            fail(ErrorCode::invalid_argument, option, " does nothing with --model, which brings layers and numbers");
        }
    }
    if (!request.text) {
        fail(ErrorCode::invalid_argument, "--model needs a text to read: qkv explain --model FILE TEXT");
    }
}

/// A token as a label: blanks are seen, and bytes that are only a part of a character are numbers.
std::string label_of(const std::string& token) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    const bool whole = is_valid_utf8(token);
    std::string label;
    for (const char byte : token) {
        const auto value = static_cast<unsigned char>(byte);
        if (!whole) {
            label += {'<', kDigits[value >> 4U], kDigits[value & 15U], '>'};
        } else {
            label += byte == ' '    ? "␣"
                     : byte == '\n' ? "↵"
                     : byte == '\r' ? "␍"
                     : byte == '\t' ? "⇥"
                                    : std::string(1, byte);
        }
    }
    return label;
}

/// A tensor of one sequence without the axis of the batch.
Tensor without_batch(const Tensor& tensor) {
    return tensor.reshaped(Shape(tensor.shape().begin() + 1, tensor.shape().end()));
}

/// "e 93 %, t 4 %, a 1 %"
std::string likeliest(std::span<const float> logits, const text::Tokenizer& tokenizer) {
    constexpr std::size_t kShown = 3;
    std::vector<std::int64_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), std::int64_t{0});
    const auto logit = [logits](std::int64_t id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]); };
    std::ranges::stable_sort(ids, std::ranges::greater(), logit);
    double total = 0;
    for (const std::int64_t id : ids) {
        total += std::exp(logit(id) - logit(ids.front()));
    }
    std::string list;
    for (std::size_t i = 0; i < std::min(kShown, ids.size()); ++i) {
        const double share = std::exp(logit(ids[i]) - logit(ids.front())) / total;
        list += concat(list.empty() ? "" : ", ", printable(label_of(tokenizer.token(ids[i]))), ' ',
                       std::lround(100 * share), " %");
    }
    return list;
}

std::int64_t checked_place(const char* option, const std::optional<std::int64_t>& place, std::int64_t count,
                           const char* what) {
    if (place && (*place < 1 || *place > count)) {
        fail(ErrorCode::invalid_argument, option, " is ", *place, "; the model has ", count, " ", what);
    }
    return place.value_or(1);
}

}  // namespace

Report run_model(const Request& request) {
    check_options(request);
    const std::string name = request.model->string();
    const models::LanguageModel model = models::load_language_model(models::read_model_file(*request.model), name);
    const nn::GptOptions& sizes = model.gpt.options();
    const std::int64_t layer = checked_place("--layer", request.layer, sizes.num_layers, "layers");
    const std::int64_t head = checked_place("--head", request.head, sizes.num_heads, "heads");
    std::vector<std::int64_t> ids = model.tokenizer->encode(*request.text);
    Report report;
    report.given_tokens = static_cast<std::int64_t>(ids.size());
    if (ids.empty() || report.given_tokens > sizes.context_length) {
        fail(ErrorCode::invalid_argument, "TEXT has ", ids.size(), " tokens; expected 1 to ", sizes.context_length,
             ", the context of ", name);
    }
    ids.resize(static_cast<std::size_t>(std::min(report.given_tokens, request.shown_tokens.value_or(kMaxTokens))));
    const auto count = static_cast<std::int64_t>(ids.size());
    check_weights(sizes.num_heads, count, count);
    for (const std::int64_t id : ids) {
        report.tokens.push_back(label_of(model.tokenizer->token(id)));
    }
    report.tokens = unique_labels(std::move(report.tokens));

    Trace trace;
    const Tensor logits = model.gpt.forward(ids, 1, {.trace = &trace});  // [1, tokens, vocab_size]
    const std::int64_t query = request.query ? find_query(report.tokens, request.query) : count - 1;
    const std::string expected = concat("After ", printable(report.tokens[static_cast<std::size_t>(query)]),
                                        " the model expects ", likeliest(logits.row(query), *model.tokenizer), ".");
    for (std::int64_t place = 1; place <= sizes.num_layers; ++place) {
        if (request.layer && place != layer) {
            continue;
        }
        StageReport stage;
        stage.stage = Stage::multi_head;
        stage.tokens = report.tokens;
        stage.query = query;
        stage.heads = sizes.num_heads;
        stage.head = head - 1;
        stage.layer = place;
        stage.weights_file = printable(request.model->filename().string());
        stage.remarks = {concat("Inputs are the tokens as layer ", place, " of ", sizes.num_layers, " gets them."),
                         expected};
        const std::string prefix = concat("trf_blocks.", place - 1, ".att.");
        for (const auto& [key, tensor] : trace.entries()) {
            if (key.starts_with(prefix)) {
                const std::string part = key.substr(prefix.size());
                const bool parameter = part.starts_with("W_") || part.starts_with("out_proj");
                stage.tensors.record(part, parameter ? tensor : without_batch(tensor));
            }
        }
        report.stages.push_back(std::move(stage));
    }
    return report;
}

}  // namespace qkv::explain
