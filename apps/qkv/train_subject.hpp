// What `qkv train` learns and from what: the command line made into a model, its data and options, new or from a file.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qkv/models.hpp"

namespace qkv::app {

/// The command line as it was typed. Values stay text until all of it is known to be well-formed.
struct Typed {
    std::vector<std::string> texts;
    std::optional<std::string> task, tokenizer, vocab;
    std::optional<std::string> context, layers, heads, dim, dropout, seed;
    std::optional<std::string> steps, batch, accumulate, lr, min_lr, warmup, weight_decay, clip, eval_every;
    std::optional<std::string> save_every, early_stop, resume, out, plot, log, threads;
    bool overwrite = false, quiet = false;
};

/// A model and what it learns from, new or as a file has them.
struct Subject {
    std::unique_ptr<models::LanguageModel> model;
    std::unique_ptr<models::Data> data;
    models::TrainOptions options;
    Generator generator;
};

/// The options of training as typed, the others as given. Throws Error(invalid_argument) naming an option that is no
/// number or out of its range.
[[nodiscard]] models::TrainOptions train_options(const Typed& typed, models::TrainOptions options);

/// A new model for a text, or for a task. Throws Error(invalid_argument) for options, Error(io) and Error(format) for
/// texts, Error(out_of_memory) for sizes that this machine cannot train.
[[nodiscard]] Subject new_subject(const Typed& typed, const std::optional<models::Task>& task);

/// The model in a file, called `name` in messages, and what it was trained on. Throws Error(shape_mismatch) for an
/// option or a text that is another than the file's, else as new_subject does.
[[nodiscard]] Subject resumed_subject(const Typed& typed, const models::ModelFile& file, const std::string& name);

}  // namespace qkv::app
