#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "commands.hpp"
#include "options.hpp"
#include "qkv/error.hpp"
#include "qkv/explain.hpp"
#include "qkv/models.hpp"
#include "train_subject.hpp"
#include "training.hpp"

namespace qkv::app {

namespace {

constexpr std::int64_t kMostThreads = 4096;

std::optional<models::Task> task_named(const std::optional<std::string>& typed) {
    return typed ? std::optional(static_cast<models::Task>(choice("--task", *typed, models::task_names())))
                 : std::nullopt;
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
    taken.reserve(typed.texts.size() + 5);
    for (const std::string& text : typed.texts) {
        taken.push_back({"a text to learn from", text});
    }
    if (typed.resume && typed.resume != out) {
        taken.push_back({"--resume", *typed.resume});
    }
    const auto write = [&](const std::string& role, const std::string& path, const std::string& otherwise) {
        for (const Named& other : taken) {
            if (same_file(path, other.path) &&
                std::filesystem::status(path).type() != std::filesystem::file_type::character) {
                throw Error(ErrorCode::invalid_argument,
                            fmt::format("{} is {}, which is {} already; expected a file of its own", role,
                                        explain::in_quotes(path), other.role));
            }
        }
        const bool goes_on = typed.resume && (role != "--out" || path == *typed.resume);
        if (!typed.overwrite && !goes_on && std::filesystem::is_regular_file(path)) {
            throw Error(ErrorCode::invalid_argument,
                        fmt::format("{} ({}) is there already; {}or --overwrite it", path, role, otherwise));
        }
        taken.push_back({role, path});
    };
    write("--out", out, fmt::format("go on with --resume {}, choose another, ", shell_word(out)));
    if (typed.early_stop) {
        write("the best model of --early-stop", best_file(out), "choose another --out, ");
    }
    if (typed.plot) {
        write("--plot", *typed.plot, "choose another, ");
    }
    if (typed.log) {
        write("--log", *typed.log, "choose another, ");
    }
}

TrainingFiles training_files(const Typed& typed, const std::string& out, const models::TrainOptions& options) {
    return {.out = out,
            .plot = typed.plot,
            .log = typed.log,
            .save_every = options.save_every > 0 ? options.save_every : options.evaluate_every,
            .patience = options.patience > 0 ? std::optional(options.patience) : std::nullopt,
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
    const auto counted = [](std::int64_t count, const char* what) {
        return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
    };
    return fmt::format("{} × {}, width {}, context {}, {} tokens in the vocabulary: {} parameters; {}\n{}",
                       counted(sizes.num_layers, "layer"), counted(sizes.num_heads, "head"), sizes.emb_dim,
                       sizes.context_length, sizes.vocab_size, parameters, subject.data->fingerprint(),
                       trainer.steps_done() > 0 ? fmt::format("Going on after step {}\n", trainer.steps_done()) : "");
}

/// Something to begin with that the tokenizer knows: of characters, only those of the text.
std::string prompt(const Subject& subject) {
    constexpr std::size_t kBytes = 8;
    try {
        (void)subject.model->tokenizer->encode("The ");
        return "The ";
    } catch (const Error&) {
        std::string beginning;
        const models::Batch some = subject.data->validation(1);
        for (const std::int64_t id : some.ids) {
            const std::string character = subject.model->tokenizer->decode({&id, 1});
            const bool control = static_cast<unsigned char>(character.front()) < ' ';
            if (beginning.size() >= kBytes || (control && !beginning.empty())) {
                break;
            }
            beginning += control ? "" : character;
        }
        return beginning;
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
    (void)train_options(typed, {});  // what is mistyped is the first thing to say
    const std::string usual_out = task ? *typed.task + ".safetensors" : "model.safetensors";
    const std::string out = typed.out.value_or(typed.resume.value_or(usual_out));
    check_files(typed, out);
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
        if (trainer.finished()) {
            throw Error(ErrorCode::invalid_argument,
                        fmt::format("{} has done {} of {} steps, so nothing is left to do; expected --steps with more",
                                    *typed.resume, trainer.steps_done(), subject.options.steps));
        }
    }
    const TrainingFiles files = training_files(typed, out, subject.options);
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
