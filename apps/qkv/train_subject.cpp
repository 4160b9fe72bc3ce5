#include "train_subject.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <type_traits>

#include "options.hpp"
#include "qkv/error.hpp"
#include "qkv/explain.hpp"

namespace qkv::app {

namespace {

constexpr const char* kDefaultText = "/usr/share/common-licenses/GPL-3";  // every Debian has it

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

double probability(const std::string& option, const std::string& typed) {
    const double value = real_number(option, typed);
    if (!(value >= 0 && value <= 1)) {
        throw Error(ErrorCode::invalid_argument, option + " is " + typed + "; expected a probability from 0 to 1");
    }
    return value;
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

std::unique_ptr<models::Data> make_data(const std::optional<models::Task>& task, const std::string& text,
                                        std::int64_t context, const text::Tokenizer& tokenizer) {
    if (task) {
        return std::make_unique<models::TaskData>(*task, context, tokenizer);
    }
    return std::make_unique<models::TextData>(tokenizer.encode(text), context);
}

/// Refuses what this machine cannot hold, rather than let it be killed half-way. Counted is what is surely
/// needed: parameters, gradients and AdamW's two moments, what a block keeps of each token for its backward, the masks.
void check_memory(const nn::GptOptions& sizes, std::int64_t batch) {
    const auto dim = static_cast<double>(sizes.emb_dim);
    const auto layers = static_cast<double>(sizes.num_layers);
    const auto vocab = static_cast<double>(sizes.vocab_size);
    const auto context = static_cast<double>(sizes.context_length);
    const double parameters = dim * (2 * vocab + context + 12 * layers * dim);
    const double kept = static_cast<double>(batch) * context * (vocab + 16 * layers * dim);
    const double masks = layers * context * context;  // which the file has for PyTorch's sake
    const double needed = (4 * parameters + kept + masks) * sizeof(float);
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

/// What a file was made with is not to be changed by an option; one that says the same does no harm.
template <class Value>
void check_same(const char* option, const std::optional<std::string>& typed, const Value& in_file,
                const std::string& file) {
    const auto same = [&] {
        if constexpr (std::is_same_v<Value, std::string>) {
            return *typed == in_file;
        } else {
            return real_number(option, *typed) == static_cast<double>(in_file);
        }
    };
    if (typed && !same()) {
        throw Error(ErrorCode::shape_mismatch,
                    fmt::format("{} is {}, but {} was trained with {}; leave it out, or begin anew without --resume",
                                option, explain::in_quotes(*typed), file, in_file));
    }
}

/// The text to go on with, which is to be the one that the training began with.
std::string resumed_text(const Typed& typed, const text::Tokenizer& tokenizer, const std::string& name) {
    std::string text = training_text(typed);
    try {
        (void)tokenizer.encode(text);
    } catch (const Error& error) {
        throw Error(ErrorCode::shape_mismatch,
                    fmt::format("{} was trained on another text than {}: {}", name,
                                typed.texts.empty() ? std::string(kDefaultText) + ", the default" : typed.texts.front(),
                                error.what()));
    }
    return text;
}

}  // namespace

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
    whole("--save-every", typed.save_every, 1, kMaxSteps, options.save_every);
    whole("--early-stop", typed.early_stop, 1, kMaxSteps, options.patience);
    real("--lr", typed.lr, options.lr);
    options.min_lr = typed.lr ? options.lr / 10 : options.min_lr;
    real("--min-lr", typed.min_lr, options.min_lr);
    real("--weight-decay", typed.weight_decay, options.weight_decay);
    real("--clip", typed.clip, options.clip);
    return options;
}

Subject new_subject(const Typed& typed, const std::optional<models::Task>& task) {
    const Defaults usual = defaults(task.has_value());
    nn::GptOptions sizes;
    sizes.context_length = whole_number("--context", typed.context, 1, models::kMaxContext).value_or(usual.context);
    sizes.num_layers = whole_number("--layers", typed.layers, 1, models::kMaxLayers).value_or(usual.layers);
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

Subject resumed_subject(const Typed& typed, const models::ModelFile& file, const std::string& name) {
    auto model = std::make_unique<models::LanguageModel>(models::load_language_model(file, name));
    const nn::GptOptions& sizes = model->gpt.options();
    const text::Tokenizer& tokenizer = *model->tokenizer;
    const std::optional<models::Task> task = models::trained_task(file);
    check_same("--context", typed.context, sizes.context_length, name);
    check_same("--layers", typed.layers, sizes.num_layers, name);
    check_same("--heads", typed.heads, sizes.num_heads, name);
    check_same("--dim", typed.dim, sizes.emb_dim, name);
    check_same("--dropout", typed.dropout, sizes.dropout, name);
    check_same("--tokenizer", typed.tokenizer, std::string(tokenizer.kind()), name);
    if (typed.vocab && real_number("--vocab", *typed.vocab) < static_cast<double>(tokenizer.vocab_size())) {
        check_same("--vocab", typed.vocab, tokenizer.vocab_size(), name);  // more than that the text did not have
    }
    check_same("--task", typed.task,
               task ? models::task_names()[static_cast<std::size_t>(*task)] : std::string("a text"), name);
    if (task && !typed.texts.empty()) {
        throw Error(ErrorCode::shape_mismatch, name + " was trained on a task; leave out the text files");
    }
    if (typed.seed) {
        throw Error(ErrorCode::invalid_argument,
                    "--seed begins a training; --resume goes on with random numbers where " + name + " left them");
    }
    auto data = make_data(task, task ? "" : resumed_text(typed, tokenizer, name), sizes.context_length, tokenizer);
    const models::TrainOptions options = train_options(typed, models::train_options_of(file, name));
    check_memory(sizes, options.batch);
    return {.model = std::move(model), .data = std::move(data), .options = options, .generator = Generator()};
}

}  // namespace qkv::app
