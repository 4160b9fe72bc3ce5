// Training a language model, step by step, so that it can be stopped and gone on with at any of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "qkv/export.h"
#include "qkv/models/data.hpp"
#include "qkv/models/language_model.hpp"
#include "qkv/nn/optimizer.hpp"
#include "qkv/random.hpp"
#include "qkv/runtime.hpp"

namespace qkv {
namespace models QKV_EXPORT {

struct TrainOptions {
    std::int64_t steps = 1000;
    std::int64_t batch = 16;      ///< sequences of one backward
    std::int64_t accumulate = 1;  ///< backwards of one step
    double lr = 1e-3;
    double min_lr = 1e-4;
    std::int64_t warmup = 100;  ///< steps until lr is reached
    double weight_decay = 0.1;  ///< of matrices; biases and the norms' scales and shifts have none
    double clip = 1.0;          ///< the largest norm of all gradients together; 0: any
    std::int64_t evaluate_every = 100;
    std::int64_t validation_sequences = 64;
    // What whoever calls step() is to know when training goes on from a file; the trainer itself does not look at it.
    std::int64_t save_every = 0;  ///< steps between checkpoints; 0: not said
    std::int64_t patience = 0;    ///< evaluations without a better loss after which to stop; 0: any
};

/// Limits of the options, beyond which lies a mistake.
inline constexpr std::int64_t kMaxSteps = 1'000'000;
inline constexpr std::int64_t kMaxSequences = 65'536;

/// The learning rate of a step, counted from 1: in a straight line up to lr over `warmup` steps, then down half a
/// cosine to min_lr at the last step (Loshchilov & Hutter 2017).
[[nodiscard]] double learning_rate(const TrainOptions& options, std::int64_t step);

/// How well the model does on data that it does not learn from.
struct Evaluation {
    double loss = 0;      ///< mean cross-entropy in nats
    double accuracy = 0;  ///< how often the most likely token is the right one
};

/// What came of the steps so far.
struct History {
    struct Validation {
        std::int64_t step = 0;
        float loss = 0;
        float accuracy = 0;
    };
    std::vector<float> losses;  ///< of step 1, 2, …, on what it learned from
    std::vector<float> lrs;     ///< of the same steps
    std::vector<Validation> validations;
};

/// Trains the model on the data. Everything that the next step depends on is in a checkpoint, so training that is
/// resumed has the same bits as training that was never interrupted, whatever the number of threads.
class Trainer {
public:
    /// `generator` goes on where drawing the parameters left it. Model, data and runtime must outlive the trainer and
    /// stay in place. Throws Error(invalid_argument) for options out of their ranges.
    Trainer(LanguageModel& model, const Data& data, const TrainOptions& options, const Generator& generator,
            const Runtime& runtime = Runtime::serial());

    struct Step {
        std::int64_t step = 0;  ///< counted from 1
        double loss = 0;        ///< before the step
        double lr = 0;
        double gradient_norm = 0;  ///< before clipping
        std::int64_t tokens = 0;
        std::optional<Evaluation> validation = {};  ///< every evaluate_every steps and at the last one
    };
    /// One step. Throws Error(out_of_range) when something is not finite, saying in which step and naming the first
    /// tensor that is not: loss or gradients, and then the model is as it was; or the validation loss after the step.
    Step step();

    [[nodiscard]] std::int64_t steps_done() const noexcept { return static_cast<std::int64_t>(history_.losses.size()); }
    [[nodiscard]] bool finished() const noexcept { return steps_done() >= options_.steps; }
    [[nodiscard]] const TrainOptions& options() const noexcept { return options_; }
    [[nodiscard]] const History& history() const noexcept { return history_; }

    [[nodiscard]] Evaluation evaluate();

    /// Writes model and training state into one file, whole or not at all. Throws Error(io), and Error(out_of_range)
    /// for a tensor that is not finite: what is in the file already is worth more.
    void save(const std::filesystem::path& path) const;

    /// Goes on from a file that save() wrote: the model's parameters, too, become the file's. `name` is what messages
    /// call it. Throws Error(shape_mismatch), naming both, for another data set or other shapes, Error(format) for a
    /// file without a training state or a broken one; then nothing has changed.
    void resume(const ModelFile& file, const std::string& name);

private:
    [[nodiscard]] std::string first_not_finite(const Batch& batch) const;
    [[nodiscard]] std::string first_gradient_not_finite() const;

    LanguageModel* model_;
    const Data* data_;
    TrainOptions options_;
    Generator generator_;
    const Runtime* runtime_;
    nn::ParameterList<float> parameters_;
    nn::AdamW<float> matrices_, vectors_;  // with and without weight decay
    History history_;
};

/// The task that a file was trained on, if it was one.
[[nodiscard]] std::optional<Task> trained_task(const ModelFile& file);

/// The options that a file was trained with. Throws Error(format) for a file without a training state.
[[nodiscard]] TrainOptions train_options_of(const ModelFile& file, const std::string& name);

}  // namespace models QKV_EXPORT
}  // namespace qkv
