#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "commands.hpp"
#include "options.hpp"
#include "qkv/error.hpp"
#include "qkv/explain.hpp"
#include "qkv/models.hpp"
#include "training.hpp"

namespace qkv::app {

namespace {

/// The command line as it was typed. Values stay text until all of it is known to be well-formed.
struct Typed {
    std::vector<std::string> texts;
    std::optional<std::string> task, tokenizer, vocab;
    std::optional<std::string> context, layers, heads, dim, dropout, seed;
    std::optional<std::string> steps, batch, accumulate, lr, min_lr, warmup, weight_decay, clip, eval_every;
    std::optional<std::string> save_every, early_stop, resume, out, plot, log, threads;
    bool overwrite = false, quiet = false;
};

constexpr const char* kDefaultText = "/usr/share/common-licenses/GPL-3";  // every Debian has it
constexpr std::int64_t kMostContext = 8192;
constexpr std::int64_t kMostLayers = 256;
constexpr std::int64_t kMostThreads = 4096;

/// What is trained when nothing else is said: a text in under three minutes, a task in one, on two cores.
struct Defaults {
    std::int64_t context = 0, layers = 0, heads = 0, dim = 0, vocab = 0;
    double dropout = 0;
    models::TrainOptions train;
};

Defaults defaults(bool task) {
    if (task) {
        return {.context = 16,
                .layers = 2,
                .heads = 2,
                .dim = 64,
                .vocab = 0,
                .dropout = 0.0,
                .train = {.steps = 500, .batch = 32, .lr = 5e-3, .min_lr = 5e-4, .warmup = 50}};
    }
    return {.context = 64,
            .layers = 4,
            .heads = 4,
            .dim = 64,
            .vocab = 512,
            .dropout = 0.1,
            .train = {.steps = 1000, .batch = 16, .lr = 5e-3, .min_lr = 5e-4}};
}

std::optional<models::Task> task_named(const std::optional<std::string>& typed) {
    return typed ? std::optional(static_cast<models::Task>(choice("--task", *typed, models::task_names())))
                 : std::nullopt;
}

double probability(const std::string& option, const std::string& typed) {
    const double value = real_number(option, typed);
    if (!(value >= 0 && value <= 1)) {
        throw Error(ErrorCode::invalid_argument, option + " is " + typed + "; expected a probability from 0 to 1");
    }
    return value;
}

models::TrainOptions train_options(const Typed& typed, models::TrainOptions options) {
    using models::kMaxSequences;
    using models::kMaxSteps;
    const auto whole = [](const char* name, const std::optional<std::string>& value, std::int64_t lowest,
                          std::int64_t highest,
                          std::int64_t& into) { into = whole_number(name, value, lowest, highest).value_or(into); };
    const auto real = [](const char* name, const std::optional<std::string>& value, double& into) {
        into = value ? real_number(name, *value) : into;
        if (into < 0) {
            throw Error(ErrorCode::invalid_argument, fmt::format("{} is {}; expected 0 or more", name, *value));
        }
    };
    whole("--steps", typed.steps, 1, kMaxSteps, options.steps);
    whole("--batch", typed.batch, 1, kMaxSequences, options.batch);
    whole("--accumulate", typed.accumulate, 1, kMaxSequences, options.accumulate);
    whole("--warmup", typed.warmup, 0, kMaxSteps, options.warmup);
    whole("--eval-every", typed.eval_every, 1, kMaxSteps, options.evaluate_every);
    real("--lr", typed.lr, options.lr);
    options.min_lr = typed.lr ? options.lr / 10 : options.min_lr;
    real("--min-lr", typed.min_lr, options.min_lr);
    real("--weight-decay", typed.weight_decay, options.weight_decay);
    real("--clip", typed.clip, options.clip);
    return options;
}

/// The text itself; one of the tasks has none.
std::string training_text(const Typed& typed) {
    std::vector<std::filesystem::path> files(typed.texts.begin(), typed.texts.end());
    if (files.empty()) {
        files.emplace_back(kDefaultText);
        if (!std::filesystem::exists(kDefaultText)) {
            throw Error(ErrorCode::invalid_argument,
                        fmt::format("no TEXT is given, and {} is not here; name a text file", kDefaultText));
        }
    }
    return models::read_text(files);
}

std::shared_ptr<const text::Tokenizer> new_tokenizer(const Typed& typed, const std::string& text, std::int64_t vocab) {
    const bool bytes = choice("--tokenizer", typed.tokenizer.value_or("char"), {"char", "bpe"}) == 1;
    if (typed.vocab && !bytes) {
        throw Error(ErrorCode::invalid_argument,
                    "--vocab is for --tokenizer bpe; characters are as many as the text has");
    }
    if (bytes) {
        return text::BpeTokenizer::learned(
            text, whole_number("--vocab", typed.vocab, text::kBytes, text::kMaxVocabulary).value_or(vocab));
    }
    return std::make_shared<text::CharacterTokenizer>(text);
}

/// A model and what it learns from, new or as a file has them.
struct Subject {
    std::unique_ptr<models::LanguageModel> model;
    std::unique_ptr<models::Data> data;
    models::TrainOptions options;
    Generator generator;
};

std::unique_ptr<models::Data> make_data(const std::optional<models::Task>& task, const std::string& text,
                                        std::int64_t context, const text::Tokenizer& tokenizer) {
    if (task) {
        return std::make_unique<models::TaskData>(*task, context, tokenizer);
    }
    return std::make_unique<models::TextData>(tokenizer.encode(text), context);
}

/// Refuses what this machine cannot hold, rather than let it be killed half-way. Counted is what is surely
/// needed: parameters, gradients and AdamW's two moments, and what a block keeps of each token for its backward.
void check_memory(const nn::GptOptions& sizes, std::int64_t batch) {
    const auto dim = static_cast<double>(sizes.emb_dim);
    const auto layers = static_cast<double>(sizes.num_layers);
    const auto vocab = static_cast<double>(sizes.vocab_size);
    const auto context = static_cast<double>(sizes.context_length);
    const double parameters = dim * (2 * vocab + context + 12 * layers * dim);
    const double kept = static_cast<double>(batch) * context * (vocab + 12 * layers * dim);
    const double needed = (4 * parameters + kept) * sizeof(float);
    const double has = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
    if (needed > has) {
        throw Error(
            ErrorCode::out_of_memory,
            fmt::format("{} layers of width {} with context {} and --batch {} need at least {:.3g} GiB of memory to "
                        "train; this machine has {:.3g} GiB",
                        sizes.num_layers, sizes.emb_dim, sizes.context_length, batch, needed / (1 << 30),
                        has / (1 << 30)));
    }
}

Subject new_subject(const Typed& typed, const std::optional<models::Task>& task) {
    const Defaults usual = defaults(task.has_value());
    nn::GptOptions sizes;
    sizes.context_length = whole_number("--context", typed.context, 1, kMostContext).value_or(usual.context);
    sizes.num_layers = whole_number("--layers", typed.layers, 1, kMostLayers).value_or(usual.layers);
    sizes.num_heads = whole_number("--heads", typed.heads, 1, explain::kMaxHeads).value_or(usual.heads);
    sizes.emb_dim = whole_number("--dim", typed.dim, 1, explain::kMaxWidth).value_or(usual.dim);
    sizes.dropout = typed.dropout ? probability("--dropout", *typed.dropout) : usual.dropout;
    if (sizes.emb_dim % sizes.num_heads != 0) {
        throw Error(ErrorCode::invalid_argument, fmt::format("--dim {} cannot be split into --heads {} of one width",
                                                             sizes.emb_dim, sizes.num_heads));
    }
    Subject subject{.model = nullptr,
                    .data = nullptr,
                    .options = train_options(typed, usual.train),
                    .generator = Generator(typed.seed ? seed_number("--seed", *typed.seed) : 123)};
    const std::string text = task ? std::string(models::task_characters()) : training_text(typed);
    const auto tokenizer = new_tokenizer(typed, text, usual.vocab);
    subject.data = make_data(task, text, sizes.context_length, *tokenizer);
    sizes.vocab_size = tokenizer->vocab_size();
    check_memory(sizes, subject.options.batch);
    subject.model = std::make_unique<models::LanguageModel>(sizes, tokenizer, subject.generator);
    return subject;
}

/// What a file was made with is not to be changed by an option; one that says the same does no harm.
void check_same(const char* option, const std::optional<std::string>& typed, const std::string& in_file,
                const std::string& file) {
    if (typed && *typed != in_file) {
        throw Error(ErrorCode::shape_mismatch,
                    fmt::format("{} is {}, but {} was trained with {}; leave it out, or begin anew without --resume",
                                option, explain::in_quotes(*typed), file, in_file));
    }
}

Subject resumed_subject(const Typed& typed, const models::ModelFile& file, const std::string& name) {
    auto model = std::make_unique<models::LanguageModel>(models::load_language_model(file, name));
    const nn::GptOptions& sizes = model->gpt.options();
    const text::Tokenizer& tokenizer = *model->tokenizer;
    const std::optional<models::Task> task = models::trained_task(file);
    check_same("--context", typed.context, std::to_string(sizes.context_length), name);
    check_same("--layers", typed.layers, std::to_string(sizes.num_layers), name);
    check_same("--heads", typed.heads, std::to_string(sizes.num_heads), name);
    check_same("--dim", typed.dim, std::to_string(sizes.emb_dim), name);
    check_same("--dropout", typed.dropout, fmt::format("{}", sizes.dropout), name);
    check_same("--tokenizer", typed.tokenizer, std::string(tokenizer.kind()), name);
    check_same("--vocab", typed.vocab, std::to_string(tokenizer.vocab_size()), name);
    check_same("--task", typed.task, task ? models::task_names()[static_cast<std::size_t>(*task)] : "a text", name);
    if (task && !typed.texts.empty()) {
        throw Error(ErrorCode::shape_mismatch, name + " was trained on a task; leave out the text files");
    }
    if (typed.seed) {
        throw Error(ErrorCode::invalid_argument,
                    "--seed begins a training; --resume goes on with random numbers where " + name + " left them");
    }
    auto data = make_data(task, task ? "" : training_text(typed), sizes.context_length, tokenizer);
    return {.model = std::move(model),
            .data = std::move(data),
            .options = train_options(typed, models::train_options_of(file, name)),
            .generator = Generator()};
}

std::string shell_word(const std::string& word) {
    const bool plain =
        word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+=,@") ==
            std::string::npos &&
        !word.empty();
    std::string quoted = "'";
    for (const char letter : word) {
        quoted += letter == '\'' ? "'\\''" : std::string(1, letter);
    }
    return plain ? word : quoted + "'";
}

/// The command that goes on with `out`. Options in the file need not be said again.
std::string go_on_command(const Typed& typed, const std::string& out) {
    std::string command = "qkv train";
    for (const std::string& text : typed.texts) {
        command += " " + shell_word(text);
    }
    command += " --resume " + shell_word(out);
    const auto keep = [&command](const char* option, const std::optional<std::string>& value) {
        command += value ? fmt::format(" {} {}", option, shell_word(*value)) : "";
    };
    keep("--save-every", typed.save_every);
    keep("--early-stop", typed.early_stop);
    keep("--plot", typed.plot);
    keep("--log", typed.log);
    keep("--threads", typed.threads);
    return command;
}

/// Whether two names mean one file, be it there or not.
bool same_file(const std::filesystem::path& a, const std::filesystem::path& b) {
    std::error_code not_there;
    return std::filesystem::equivalent(a, b, not_there) ||
           std::filesystem::weakly_canonical(a, not_there) == std::filesystem::weakly_canonical(b, not_there);
}

/// Refuses, before anything is read, to write one file over another: over a text, too, or the file that is resumed
/// (unless it is the one to go on with).
void check_files(const Typed& typed, const std::string& out) {
    if (typed.plot && !typed.plot->ends_with(".svg")) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("--plot is {}; expected a name that ends in .svg, the one format it is drawn in",
                                explain::in_quotes(*typed.plot)));
    }
    struct Named {
        std::string role, path;
    };
    std::vector<Named> taken;
    for (const std::string& text : typed.texts) {
        taken.push_back({"a text to learn from", text});
    }
    if (typed.resume && typed.resume != out) {
        taken.push_back({"--resume", *typed.resume});
    }
    const auto write = [&taken](const std::string& role, const std::string& path) {
        for (const Named& other : taken) {
            if (same_file(path, other.path) &&
                std::filesystem::status(path).type() != std::filesystem::file_type::character) {
                throw Error(ErrorCode::invalid_argument,
                            fmt::format("{} is {}, which is {} already; expected a file of its own", role,
                                        explain::in_quotes(path), other.role));
            }
        }
        taken.push_back({role, path});
    };
    write("--out", out);
    if (typed.early_stop) {
        write("the best model of --early-stop", best_file(out));
    }
    if (typed.plot) {
        write("--plot", *typed.plot);
    }
    if (typed.log) {
        write("--log", *typed.log);
    }
}

TrainingFiles training_files(const Typed& typed, const std::string& out, std::int64_t evaluate_every) {
    return {.out = out,
            .plot = typed.plot,
            .log = typed.log,
            .save_every = whole_number("--save-every", typed.save_every, 1, models::kMaxSteps).value_or(evaluate_every),
            .patience = whole_number("--early-stop", typed.early_stop, 1, models::kMaxSteps),
            .quiet = typed.quiet,
            .go_on = go_on_command(typed, out)};
}

/// What it is that begins, in one line.
std::string introduction(const Subject& subject, const models::Trainer& trainer) {
    const nn::GptOptions& sizes = subject.model->gpt.options();
    std::int64_t parameters = 0;
    for (const auto& [name, parameter] : subject.model->gpt.parameters()) {
        parameters += parameter->value.numel();
    }
    return fmt::format("{} layers × {} heads, width {}, context {}, {} tokens in the vocabulary: {} parameters; {}\n{}",
                       sizes.num_layers, sizes.num_heads, sizes.emb_dim, sizes.context_length, sizes.vocab_size,
                       parameters, subject.data->fingerprint(),
                       trainer.steps_done() > 0 ? fmt::format("Going on after step {}\n", trainer.steps_done()) : "");
}

/// Something to begin with that the tokenizer knows: of characters, only those of the text.
std::string prompt(const Subject& subject) {
    constexpr std::size_t kTokens = 8;
    try {
        (void)subject.model->tokenizer->encode("The ");
        return "The ";
    } catch (const Error&) {
        const models::Batch some = subject.data->validation(1);
        return subject.model->tokenizer->decode(std::span(some.ids).first(std::min(kTokens, some.ids.size())));
    }
}

/// What to do with the model now.
std::string what_next(const Subject& subject, const std::optional<models::Task>& task, const std::string& out) {
    const std::string file = shell_word(out);
    if (!task) {
        return fmt::format("Try: qkv generate {} {}\n", file, shell_word(prompt(subject)));
    }
    Generator generator;
    const auto [question, answer] = static_cast<const models::TaskData&>(*subject.data).puzzle(generator);
    return fmt::format(
        "Try: qkv generate {0} \"{1}\" --tokens {2} --greedy     (right: {3})\n"
        "     qkv explain --model {0} \"{1}{4}\" --html head.html\n",
        file, question, answer.size(), answer, answer.substr(0, answer.size() - 1));
}

void run_train(const Typed& typed) {
    std::optional<models::Task> task = task_named(typed.task);
    if (task && !typed.resume && (!typed.texts.empty() || typed.tokenizer || typed.vocab)) {
        throw Error(ErrorCode::invalid_argument,
                    "--task makes its own sequences of characters; leave out text files, "
                    "--tokenizer and --vocab");
    }
    const std::string usual_out = task ? *typed.task + ".safetensors" : "model.safetensors";
    const std::string out = typed.out.value_or(typed.resume.value_or(usual_out));
    check_files(typed, out);
    if (!typed.overwrite && out != typed.resume && std::filesystem::exists(out) &&
        std::filesystem::is_regular_file(out)) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("{} is there already; go on with --resume {}, choose another --out, or --overwrite it",
                                out, shell_word(out)));
    }
    std::optional<models::ModelFile> file;
    if (typed.resume) {
        file = models::read_model_file(*typed.resume);
        task = models::trained_task(*file);
    }
    const Runtime runtime(whole_number("--threads", typed.threads, 0, kMostThreads).value_or(0));
    Subject subject = file ? resumed_subject(typed, *file, *typed.resume) : new_subject(typed, task);
    models::Trainer trainer(*subject.model, *subject.data, subject.options, subject.generator, runtime);
    if (file) {
        trainer.resume(*file, *typed.resume);
    }
    const TrainingFiles files = training_files(typed, out, subject.options.evaluate_every);
    const auto say = [&typed](const std::string& text) {
        if (!typed.quiet) {
            fmt::print(stderr, "{}", text);
        }
    };
    say(introduction(subject, trainer));
    run_training(trainer, files);
    say(what_next(subject, task, out));
}

}  // namespace

void add_train_command(CLI::App& program) {
    CLI::App* command =
        program.add_subcommand("train", "Train a small GPT on text files, or on a task that shows what heads learn.");
    auto typed = std::make_shared<Typed>();
    const auto option = [&](const char* names, std::optional<std::string>& value, const char* what,
                            const char* placeholder, const char* group) {
        command->add_option(names, value, what)->type_name(placeholder)->group(group);
    };
    command->add_option("text", typed->texts, "Text files, UTF-8 (default: the GPL-3 among Debian's licences)")
        ->type_name("FILE");

    option("--task", typed->task, "copy, reverse, sort or induction instead of a text", "TASK", "Data");
    option("--tokenizer", typed->tokenizer, "char (default) or bpe (byte pairs learned from the text)", "KIND", "Data");
    option("--vocab", typed->vocab, "bpe: how many tokens to learn (default 512)", "N", "Data");

    option("--context", typed->context, "Tokens that the model sees (default 64; task: 16, for 8 letters)", "N",
           "Model");
    option("--layers", typed->layers, "Transformer blocks (default 4; task: 2)", "N", "Model");
    option("--heads", typed->heads, "Heads of each (default 4; task: 2)", "N", "Model");
    option("--dim", typed->dim, "Width of the embeddings (default 64)", "N", "Model");
    option("--dropout", typed->dropout, "Probability of dropping (default 0.1; task: 0)", "P", "Model");
    option("--seed", typed->seed, "Seed of everything random (default 123)", "N", "Model");

    option("--steps", typed->steps, "Steps of the optimizer (default 1000; task: 500)", "N", "Training");
    option("--batch", typed->batch, "Sequences at once (default 16; task: 32)", "N", "Training");
    option("--accumulate", typed->accumulate, "Batches of a step, whose gradients add up (default 1)", "N", "Training");
    option("--lr", typed->lr, "Learning rate after the warm-up (default 0.005)", "R", "Training");
    option("--min-lr", typed->min_lr, "Learning rate at the end (default: a tenth of --lr)", "R", "Training");
    option("--warmup", typed->warmup, "Steps until --lr is reached (default 100; task: 50)", "N", "Training");
    option("--weight-decay", typed->weight_decay, "AdamW's, of matrices (default 0.1)", "R", "Training");
    option("--clip", typed->clip, "Largest norm of the gradients, 0 for any (default 1)", "R", "Training");
    option("--eval-every", typed->eval_every, "Steps between evaluations (default 100)", "N", "Training");
    option("--early-stop", typed->early_stop,
           "Stop after N evaluations without a better loss; the best model is kept as NAME.best.safetensors", "N",
           "Training");

    option("--out", typed->out, "The model (default model.safetensors; task: TASK.safetensors)", "FILE", "Files");
    command->add_flag("--overwrite", typed->overwrite, "Even if --out is there already")
        ->disable_flag_override()
        ->group("Files");
    option("--resume", typed->resume, "Go on from this file, with its options, to the same bits", "FILE", "Files");
    option("--save-every", typed->save_every, "Steps between checkpoints (default: --eval-every)", "N", "Files");
    option("--plot", typed->plot, "The loss curve, an .svg picture", "FILE", "Files");
    option("--log", typed->log, "The losses, a JSON object a line", "FILE", "Files");
    option("--threads", typed->threads, "Threads; the result is the same for any number (default: all)", "N", "Files");
    command->add_flag("--quiet", typed->quiet, "Say nothing unless something is wrong")
        ->disable_flag_override()
        ->group("Files");

    command->footer(
        "Ctrl-C saves and ends; --resume goes on.\n\n"
        "Examples:\n"
        "  qkv train                                       characters of the GPL-3, about two minutes\n"
        "  qkv train novel.txt --out novel.safetensors --plot loss.svg\n"
        "  qkv train *.txt --tokenizer bpe --vocab 1000 --context 128 --dim 128 --steps 3000\n"
        "  qkv train --task reverse                        heads that read backwards, in a minute\n"
        "  qkv train novel.txt --resume novel.safetensors --steps 5000");
    command->callback([typed] { run_train(*typed); });
}

}  // namespace qkv::app
