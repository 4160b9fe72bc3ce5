#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "commands.hpp"
#include "options.hpp"
#include "output.hpp"
#include "qkv/error.hpp"
#include "qkv/explain.hpp"

namespace qkv::app {

namespace {

/// The command line as it was typed. Values stay text until all of it is known to be well-formed.
struct Typed {
    std::optional<std::string> text, example, stage, query, tokens, dim, embeddings;
    std::optional<std::string> source, source_embeddings;
    std::optional<std::string> model, layer, head;
    std::optional<std::string> weights, init, d_out, heads, context_length, seed;
    std::optional<std::string> dropout, normalise, digits, colour, html;
    bool train = false, qkv_bias = false, full = false, json = false;
};

constexpr int kDigits = 4;
constexpr int kMostDigits = 9;  // a float has no more

std::vector<explain::Stage> stages_named(const std::string& typed) {
    std::vector<std::string> names;
    for (const explain::Stage stage : explain::all_stages()) {
        names.emplace_back(explain::stage_name(stage));
    }
    names.emplace_back("all");
    const std::size_t place = choice("--stage", typed, names);
    return place < explain::all_stages().size() ? std::vector{explain::all_stages()[place]} : explain::all_stages();
}

explain::Request request_from(const Typed& typed) {
    explain::Request request;
    if (typed.model && typed.stage) {
        throw Error(ErrorCode::invalid_argument,
                    "--model shows a model's own layers; choose one with --layer, not --stage");
    }
    request.stages = stages_named(typed.stage.value_or("all"));
    request.text = typed.text;
    request.example = typed.example;
    request.query = typed.query;
    request.tokens = whole_number("--tokens", typed.tokens, 1, explain::kMaxTokens);
    request.dim = whole_number("--dim", typed.dim, 1, explain::kMaxWidth);
    request.embeddings = typed.embeddings;
    request.source = typed.source;
    request.source_embeddings = typed.source_embeddings;
    request.model = typed.model;
    request.layer = whole_number("--layer", typed.layer, 1, explain::kMaxHeads);
    request.head = whole_number("--head", typed.head, 1, explain::kMaxHeads);
    request.weights = typed.weights;
    if (typed.init) {
        request.init = choice("--init", *typed.init, {"uniform", "linear"}) == 0 ? nn::Init::uniform : nn::Init::linear;
    }
    request.d_out = whole_number("--d-out", typed.d_out, 1, explain::kMaxWidth);
    request.heads = whole_number("--heads", typed.heads, 1, explain::kMaxHeads);
    request.context_length = whole_number("--context-length", typed.context_length, 1, explain::kMaxContextLength);
    request.qkv_bias = typed.qkv_bias;
    if (typed.seed) {
        request.seed = seed_number("--seed", *typed.seed);
    }
    if (typed.dropout) {
        request.dropout = real_number("--dropout", *typed.dropout);
        if (!(*request.dropout >= 0.0 && *request.dropout <= 1.0)) {
            throw Error(ErrorCode::invalid_argument,
                        "--dropout is " + *typed.dropout + "; expected a probability from 0 to 1");
        }
    }
    request.train = typed.train;
    if (typed.normalise) {
        constexpr std::array kHow{nn::Normalise::sum, nn::Normalise::naive_softmax, nn::Normalise::softmax};
        request.normalise = kHow.at(choice("--normalise", *typed.normalise, {"sum", "naive", "softmax"}));
    }
    return request;
}

/// Each form of output has its own options; one that it does not read would do nothing.
void check_one_form(const Typed& typed) {
    if (typed.json && typed.html) {
        throw Error(ErrorCode::invalid_argument, "--json and --html are two forms of output; choose one");
    }
    const char* form = typed.json ? "--json" : typed.html ? "--html" : nullptr;
    if (form != nullptr && (typed.digits || typed.colour || typed.full)) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("{} shapes the screens; {} always holds every digit of every matrix",
                                typed.digits   ? "--digits"
                                : typed.colour ? "--color"
                                               : "--full",
                                form));
    }
}

void write_page(explain::Request request, const std::string& path) {
    request.shown_tokens = explain::kMaxPageTokens;
    const explain::Report report = explain::run(request);
    const std::uint64_t bytes = explain::write_html(report, path);
    const auto shown = static_cast<std::int64_t>(report.tokens.size());
    fmt::print(
        stderr, "Wrote {} ({} kB{}). Open it in a browser; it needs no network.\n", explain::printable(path),
        (bytes + 999) / 1000,
        shown < report.given_tokens ? fmt::format(", the first {} of {} tokens", shown, report.given_tokens) : "");
}

void run_explain(const Typed& typed) {
    check_one_form(typed);
    explain::TextStyle style;
    style.digits = static_cast<int>(whole_number("--digits", typed.digits, 1, kMostDigits).value_or(kDigits));
    style.digits_fixed = typed.digits.has_value();
    style.full = typed.full;
    constexpr std::array kWhen{When::automatic, When::always, When::never};
    const When when = kWhen.at(choice("--color", typed.colour.value_or("auto"), {"auto", "always", "never"}));
    if (typed.html) {
        write_page(request_from(typed), *typed.html);
        return;
    }
    const explain::Report report = explain::run(request_from(typed));
    if (typed.json) {
        explain::write_json(report, write_output);
        finish_output();
        return;
    }
    style.colour = output_colour(when);
    style.width = output_width();
    if (style.colour != explain::Colour::none) {
        restore_colours_on_interrupt();
    }
    bool first = true;
    for (const std::string& screen : explain::render_screens(report, style)) {
        write_output((first ? "" : "\n") + screen);
        first = false;
    }
    finish_output();
}

}  // namespace

void add_explain_command(CLI::App& program) {
    CLI::App* command =
        program.add_subcommand("explain", "Walk a sentence through the stages of attention, every number shown.");
    auto typed = std::make_shared<Typed>();
    const auto option = [&](const char* names, std::optional<std::string>& value, const char* what,
                            const char* placeholder) {
        return command->add_option(names, value, what)->type_name(placeholder);
    };
    const auto flag = [&](const char* name, bool& value, const char* what) {
        return command->add_flag(name, value, what)->disable_flag_override();  // --json=no would be a surprise
    };
    command->add_option("text", typed->text, "A sentence of your own, in quotes; its vectors are random.")
        ->type_name("TEXT");

    option("--stage", typed->stage, "simple, self, causal, wrapper, multi-head, cross or all (default)", "STAGE");
    option("--query", typed->query,
           "The token to follow, or its place counted from 1 (default: journey, else the second)", "TOKEN|INDEX");

    option("--example", typed->example, "journey (default), sun, notebook or translate", "NAME")->group("Sentence");
    option("--tokens", typed->tokens, "So many unnamed tokens with random vectors", "N")->group("Sentence");
    option("--dim", typed->dim, "Width of random vectors (default 4)", "N")->group("Sentence");
    option("--embeddings", typed->embeddings, "Vectors from a .csv, .json, .npy or .safetensors file; TEXT labels them",
           "FILE")
        ->group("Sentence");
    option("--source", typed->source, "cross: the sentence that is read (default: the German of translate)", "TEXT")
        ->group("Sentence");
    option("--source-embeddings", typed->source_embeddings, "cross: its vectors", "FILE")->group("Sentence");

    option("--model", typed->model, "A model of qkv train instead: its heads, on TEXT", "FILE")->group("Trained model");
    option("--layer", typed->layer, "Which layer (default: all)", "N")->group("Trained model");
    option("--head", typed->head, "Which head to follow (default 1)", "N")->group("Trained model");

    option("--d-out", typed->d_out, "Width of queries, keys and values (default 2 for journey and sun, else --dim)",
           "N")
        ->group("Parameters");
    option("--heads", typed->heads, "Number of heads (default 2)", "N")->group("Parameters");
    option("--context-length", typed->context_length, "Longest sequence (default: the sentence's length)", "N")
        ->group("Parameters");
    flag("--qkv-bias", typed->qkv_bias, "Query, key and value layers with a bias")->group("Parameters");
    option("--init", typed->init, "self: uniform (raw matrices from rand) or linear (default: both)", "KIND")
        ->group("Parameters");
    option("--weights", typed->weights, "Parameters of one stage from a .safetensors file", "FILE")
        ->group("Parameters");
    option("--seed", typed->seed, "Seed of everything random (default 123; linear self 789)", "N")->group("Parameters");

    option("--dropout", typed->dropout, "Probability of dropping a weight, with --train", "P")->group("Options");
    flag("--train", typed->train, "Training mode: dropout is active")->group("Options");
    option("--normalise,--normalize", typed->normalise, "simple: sum, naive or softmax (default)", "HOW")
        ->group("Options");
    option("--digits", typed->digits, "Digits after the point (default 4)", "N")->group("Options");
    flag("--full", typed->full, "Every matrix, every row")->group("Options");
    flag("--json", typed->json, "One JSON document instead of screens")->group("Options");
    option("--html", typed->html, "A page to play with, in one file, instead of screens", "FILE")->group("Options");
    option("--color,--colour", typed->colour, "auto (default), always or never", "WHEN")->group("Options");

    command->footer(
        "TEXT is split at blanks; each of . , ; : ! ? ( ) \" is a token of its own. A repeated word is the#2.\n\n"
        "Examples:\n"
        "  qkv explain                                     the six stages on a built-in sentence\n"
        "  qkv explain --stage causal --train --dropout 0.5\n"
        "  qkv explain \"the cat sat on the mat\" --query cat --stage multi-head --dim 8 --heads 4\n"
        "  qkv explain --example translate --stage cross\n"
        "  qkv explain --tokens 10 --dim 4 --stage self --init uniform --seed 1 --full\n"
        "  qkv explain --html attention.html              the same as a page to play with\n"
        "  qkv explain --model reverse.safetensors \"abcdefgh>hgf\" --layer 1 --head 2\n"
        "  qkv explain --embeddings words.csv --weights mha.safetensors --stage multi-head --json");
    command->callback([typed] { run_explain(*typed); });
}

}  // namespace qkv::app
