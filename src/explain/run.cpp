// Running the stages of a request, each from the generator as it was after the inputs were drawn.
#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "core/check.hpp"
#include "explain/inputs.hpp"
#include "explain/model_layers.hpp"
#include "explain/parameters.hpp"
#include "qkv/explain.hpp"
#include "qkv/nn.hpp"

namespace qkv::explain {

namespace {

constexpr std::uint64_t kSeed = 123;
constexpr std::uint64_t kLinearSelfSeed = 789;
constexpr std::int64_t kDefaultHeads = 2;

/// One stage to run; self comes in two kinds.
struct Run {
    Stage stage;
    std::optional<nn::Init> init;
};

std::vector<Run> planned_runs(const Request& request) {
    std::vector<Run> runs;
    for (const Stage stage : request.stages) {
        if (stage != Stage::self) {
            runs.push_back({stage, std::nullopt});
            continue;
        }
        // Raw matrices have no bias, and a weights file is of one kind.
        const bool bias_only = request.qkv_bias && request.stages.size() == 1;
        const std::optional<nn::Init> one =
            request.weights && !request.init ? init_of_file(*request.weights) : request.init;
        if (one ? *one == nn::Init::uniform : !bias_only) {
            runs.push_back({stage, nn::Init::uniform});
        }
        if (!one || *one == nn::Init::linear) {
            runs.push_back({stage, nn::Init::linear});
        }
    }
    return runs;
}

/// An option that none of the stages reads would do nothing; say so instead.
void check_options_apply(const Request& request) {
    using enum Stage;
    const auto applies = [&](bool given, const char* option, const std::vector<Stage>& readers) {
        const bool read = std::ranges::any_of(
            request.stages, [&](Stage stage) { return std::ranges::find(readers, stage) != readers.end(); });
        if (given && !read) {
            std::string names;
            for (const Stage reader : readers) {
                names += concat(names.empty() ? "" : ", ", stage_name(reader));
            }
            fail(ErrorCode::invalid_argument, option, " does nothing in stage ", stage_name(request.stages.front()),
                 "; it is for ", names);
        }
    };
    applies(request.normalise.has_value(), "--normalise", {simple});
    applies(request.init.has_value(), "--init", {self});
    applies(request.d_out.has_value(), "--d-out", {self, causal, wrapper, multi_head, cross});
    applies(request.qkv_bias, "--qkv-bias", {self, causal, wrapper, multi_head, cross});
    applies(request.weights.has_value(), "--weights", {self, causal, wrapper, multi_head, cross});
    applies(request.heads.has_value(), "--heads", {wrapper, multi_head, cross});
    applies(request.context_length.has_value(), "--context-length", {causal, wrapper, multi_head});
    applies(request.dropout.has_value(), "--dropout", {causal, wrapper, multi_head, cross});
    applies(request.train, "--train", {causal, wrapper, multi_head, cross});
    applies(request.source.has_value(), "--source", {cross});
    applies(request.source_embeddings.has_value(), "--source-embeddings", {cross});
    if (request.weights && request.stages.size() != 1) {
        fail(ErrorCode::invalid_argument, "--weights holds the parameters of one stage; choose it with --stage");
    }
    if (request.qkv_bias && request.init == nn::Init::uniform) {
        fail(ErrorCode::invalid_argument, "--qkv-bias needs --init linear; raw matrices have no bias");
    }
}

void check_size(const std::optional<std::int64_t>& value, const char* option, std::int64_t limit) {
    if (value && (*value < 1 || *value > limit)) {
        fail(ErrorCode::invalid_argument, option, " is ", *value, "; expected 1 to ", limit);
    }
}

/// Sizes of a stage from the request, the weights file and the inputs, in that order.
struct Sizes {
    std::int64_t d_out = 0;
    std::int64_t heads = 0;
    std::int64_t context_length = 0;
    bool qkv_bias = false;
};

Sizes sizes_for(Stage stage, const Request& request, const Sequence& sequence, const ParameterFile* file) {
    const std::int64_t width = sequence.vectors.size(1);
    const auto tokens = static_cast<std::int64_t>(sequence.tokens.size());
    const FileSizes found = file != nullptr ? file->sizes : FileSizes{};
    const std::int64_t d_out = request.d_out.value_or(found.d_out.value_or(sequence.d_out.value_or(width)));
    // Heads side by side always fit; a projection that is split needs a width that two divides.
    const bool splits = stage == Stage::multi_head || stage == Stage::cross;
    const std::int64_t usual_heads = splits && d_out % kDefaultHeads != 0 ? 1 : kDefaultHeads;
    return {.d_out = d_out,
            .heads = request.heads.value_or(found.heads.value_or(usual_heads)),
            .context_length = request.context_length.value_or(found.context_length.value_or(tokens)),
            .qkv_bias = request.qkv_bias || found.qkv_bias};
}

/// Puts the file's parameters in place, if there is one, and the stage in the mode of the request.
template <class Module>
void prepare(Module& module, const Request& request, const ParameterFile* file) {
    module.train(request.train);
    if (file == nullptr) {
        return;
    }
    try {
        module.load_state_dict(file->state);
    } catch (const Error& error) {
        throw Error(error.code() == ErrorCode::out_of_memory ? error.code() : ErrorCode::shape_mismatch,
                    concat(request.weights->string(), ": ", error.what()));
    }
}

void run_stage(const Run& run, const Request& request, const Sequence& sequence, const Sequence* source,
               const ParameterFile* file, Generator& generator, StageReport& report) {
    const Tensor& x = sequence.vectors;
    const std::int64_t d_in = x.size(1);
    const Sizes sizes = sizes_for(run.stage, request, sequence, file);
    check_weights(sizes.heads, x.size(0), source != nullptr ? source->vectors.size(0) : x.size(0));
    const nn::Pass<float> pass{.generator = &generator, .trace = &report.tensors};
    switch (run.stage) {
        case Stage::simple: {
            (void)nn::SimpleSelfAttention(report.normalise).forward(x, pass);
            break;
        }
        case Stage::self: {
            nn::SelfAttention module({.d_in = d_in,
                                      .d_out = sizes.d_out,
                                      .init = *run.init,
                                      .qkv_bias = sizes.qkv_bias && *run.init == nn::Init::linear},
                                     generator);
            prepare(module, request, file);
            (void)module.forward(x, pass);
            break;
        }
        case Stage::causal: {
            nn::CausalAttention module({.d_in = d_in,
                                        .d_out = sizes.d_out,
                                        .context_length = sizes.context_length,
                                        .dropout = report.dropout,
                                        .qkv_bias = sizes.qkv_bias},
                                       generator);
            prepare(module, request, file);
            (void)module.forward(x, pass);
            break;
        }
        case Stage::wrapper:
        case Stage::multi_head: {
            const nn::MultiHeadAttentionOptions options{.d_in = d_in,
                                                        .d_out = sizes.d_out,
                                                        .context_length = sizes.context_length,
                                                        .dropout = report.dropout,
                                                        .num_heads = sizes.heads,
                                                        .qkv_bias = sizes.qkv_bias};
            report.heads = sizes.heads;
            if (run.stage == Stage::wrapper) {
                nn::MultiHeadAttentionWrapper module(options, generator);
                prepare(module, request, file);
                (void)module.forward(x, pass);
            } else {
                nn::MultiHeadAttention module(options, generator);
                prepare(module, request, file);
                (void)module.forward(x, pass);
            }
            break;
        }
        case Stage::cross: {
            report.heads = sizes.heads;
            nn::CrossAttention module({.d_query = d_in,
                                       .d_source = source->vectors.size(1),
                                       .d_out = sizes.d_out,
                                       .dropout = report.dropout,
                                       .num_heads = sizes.heads,
                                       .qkv_bias = sizes.qkv_bias},
                                      generator);
            prepare(module, request, file);
            (void)module.forward(x, source->vectors, pass);
            break;
        }
    }
}

/// Keeps the first `most` tokens: they are then the whole sentence, so its numbers are those of the shorter one.
void cut(Sequence& sequence, const std::optional<std::int64_t>& most) {
    const auto count = static_cast<std::int64_t>(sequence.tokens.size());
    if (!most || count <= *most) {
        return;
    }
    const std::int64_t width = sequence.vectors.size(1);
    const std::span<const float> kept = sequence.vectors.values().first(static_cast<std::size_t>(*most * width));
    sequence.vectors = Tensor({*most, width}, std::vector<float>(kept.begin(), kept.end()));
    sequence.tokens.resize(static_cast<std::size_t>(*most));
    sequence.remarks.push_back(concat("Cut to the first ", *most, " of ", count, " tokens."));
}

}  // namespace

void check_weights(std::int64_t heads, std::int64_t queries, std::int64_t keys) {
    if (heads * queries * keys > kMaxWeights) {
        fail(ErrorCode::out_of_range, heads, " heads × ", queries, " queries × ", keys, " keys are ",
             heads * queries * keys, " weights; expected at most ", kMaxWeights, ", because every matrix is kept");
    }
}

const std::vector<Stage>& all_stages() {
    static const std::vector<Stage> stages{Stage::simple,  Stage::self,       Stage::causal,
                                           Stage::wrapper, Stage::multi_head, Stage::cross};
    return stages;
}

std::string_view stage_name(Stage stage) {
    constexpr std::array<std::string_view, 6> kNames{"simple", "self", "causal", "wrapper", "multi-head", "cross"};
    return kNames[static_cast<std::size_t>(stage)];
}

Report run(const Request& request) {
    if (request.model) {
        return run_model(request);
    }
    if (request.layer || request.head) {
        fail(ErrorCode::invalid_argument, request.layer ? "--layer" : "--head",
             " is of a trained model; name it with --model");
    }
    if (request.stages.empty()) {
        fail(ErrorCode::invalid_argument, "no stage to run; expected one or more");
    }
    check_options_apply(request);
    check_size(request.d_out, "--d-out", kMaxWidth);
    check_size(request.heads, "--heads", kMaxHeads);
    check_size(request.context_length, "--context-length", kMaxContextLength);
    const std::vector<Run> runs = planned_runs(request);

    const bool only_linear_self = runs.size() == 1 && runs.front().init == nn::Init::linear;
    const std::uint64_t seed = request.seed.value_or(only_linear_self ? kLinearSelfSeed : kSeed);
    Generator generator(seed);
    const Generator fresh = generator;
    Sequence sentence = main_sequence(request, generator);
    Report report;
    report.given_tokens = static_cast<std::int64_t>(sentence.tokens.size());
    cut(sentence, request.shown_tokens);
    const std::int64_t query = find_query(sentence.tokens, request.query);
    std::optional<ParameterFile> file;
    if (request.weights) {
        file = read_parameters(*request.weights, runs.front().stage);
    }

    report.tokens = sentence.tokens;
    for (const Run& run : runs) {
        StageReport stage;
        stage.stage = run.stage;
        stage.init = run.init;
        stage.seed = seed;
        stage.tokens = sentence.tokens;
        stage.query = query;
        stage.dropout = request.dropout.value_or(0.0);
        stage.training = request.train;
        stage.normalise = request.normalise.value_or(nn::Normalise::softmax);
        stage.weights_file = request.weights ? printable(request.weights->filename().string()) : "";
        stage.remarks = sentence.remarks;

        Generator at_start = generator;
        Sequence asking = sentence;
        std::optional<Sequence> source;
        if (run.init == nn::Init::linear && !request.seed && !sentence.drawn) {
            stage.seed = kLinearSelfSeed;
            at_start.manual_seed(stage.seed);
        }
        if (run.stage == Stage::cross) {
            // Beside the built-in sentence the default is the translation, whose vectors are drawn afresh.
            const bool default_sentence = !request.text && !request.example && !request.tokens && !request.embeddings;
            if (default_sentence && !sentence.drawn) {
                at_start = fresh;
                asking = translate_queries(request, at_start);
                stage.tokens = asking.tokens;
                stage.query = find_query(asking.tokens, std::nullopt);
                stage.remarks = asking.remarks;
            }
            source = source_sequence(request, asking.vectors.size(1), at_start);
            cut(*source, request.shown_tokens);
            stage.source_tokens = source->tokens;
            for (const std::string& remark : source->remarks) {
                stage.remarks.push_back("Source: " + remark);
            }
        }
        if (stage.dropout > 0 && !request.train) {
            stage.remarks.push_back(concat("--dropout ", stage.dropout, " is idle without --train."));
        }
        run_stage(run, request, asking, source ? &*source : nullptr, file ? &*file : nullptr, at_start, stage);
        report.stages.push_back(std::move(stage));
    }
    return report;
}

}  // namespace qkv::explain
