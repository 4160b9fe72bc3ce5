#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "commands.hpp"
#include "options.hpp"
#include "output.hpp"
#include "qkv/error.hpp"
#include "qkv/models.hpp"

namespace qkv::app {

namespace {

struct Typed {
    std::string model;
    std::optional<std::string> prompt, tokens, temperature, top_k, top_p, seed, threads;
    bool greedy = false;
};

constexpr std::int64_t kMostTokens = 1'000'000'000;
constexpr std::int64_t kMostThreads = 4096;

models::SampleOptions sample_options(const Typed& typed) {
    models::SampleOptions options;
    if (typed.greedy && (typed.temperature || typed.top_k || typed.top_p)) {
        throw Error(ErrorCode::invalid_argument,
                    "--greedy takes the most likely token; leave out --temperature, --top-k and --top-p");
    }
    options.temperature = typed.greedy ? 0 : real_number("--temperature", typed.temperature.value_or("0.8"));
    options.top_k = whole_number("--top-k", typed.top_k, 0, text::kMaxVocabulary).value_or(0);
    options.top_p = real_number("--top-p", typed.top_p.value_or("1"));
    return options;
}

void run_generate(const Typed& typed) {
    const models::SampleOptions options = sample_options(typed);
    const std::int64_t tokens = whole_number("--tokens", typed.tokens, 1, kMostTokens).value_or(300);
    const std::uint64_t seed = seed_number("--seed", typed.seed.value_or("123"));
    const Runtime runtime(whole_number("--threads", typed.threads, 0, kMostThreads).value_or(0));
    const models::LanguageModel model = models::load_language_model(models::read_model_file(typed.model), typed.model);
    const std::string prompt = typed.prompt.value_or("");
    models::Generation generation(model, model.tokenizer->encode(prompt), options, seed, runtime);
    // A token may end inside a character; what is written never does.
    text::Utf8Stream stream;
    write_output(stream.push(prompt));
    finish_output();
    for (std::int64_t token = 0; token < tokens; ++token) {
        write_output(stream.push(model.tokenizer->token(generation.next())));
        finish_output();
    }
    write_output(stream.finish() + "\n");
    finish_output();
}

}  // namespace

void add_generate_command(CLI::App& program) {
    CLI::App* command = program.add_subcommand("generate", "Let a model that qkv train wrote go on with a text.");
    auto typed = std::make_shared<Typed>();
    const auto option = [&](const char* names, std::optional<std::string>& value, const char* what,
                            const char* placeholder) {
        command->add_option(names, value, what)->type_name(placeholder);
    };
    command->add_option("model", typed->model, "A file of qkv train")->type_name("MODEL")->required();
    command->add_option("prompt", typed->prompt, "What stands already (default: nothing)")->type_name("PROMPT");
    option("--tokens", typed->tokens, "How many tokens to add (default 300)", "N");
    option("--temperature", typed->temperature, "Below 1 the likely gets likelier; 0 as --greedy (default 0.8)", "R");
    option("--top-k", typed->top_k, "Only among the K most likely (default 0: all)", "K");
    option("--top-p", typed->top_p, "Only among the most likely that have this share (default 1: all)", "P");
    command->add_flag("--greedy", typed->greedy, "Always the most likely token")->disable_flag_override();
    option("--seed", typed->seed, "Seed of the draws (default 123)", "N");
    option("--threads", typed->threads, "Threads; the text is the same for any number (default: all)", "N");
    command->footer(
        "The text grows past the context that the model was trained with: its beginning is then forgotten by "
        "halves.\n\n"
        "Examples:\n"
        "  qkv generate model.safetensors \"The program \"\n"
        "  qkv generate model.safetensors \"The program \" --temperature 0.5 --top-k 20 --tokens 1000 --seed 7\n"
        "  qkv generate reverse.safetensors \"abcdefgh>\" --greedy --tokens 8");
    command->callback([typed] { run_generate(*typed); });
}

}  // namespace qkv::app
