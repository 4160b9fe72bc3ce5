// Training as a file: what the next step depends on, beside the model (docs/train.md has the names).
#include <algorithm>
#include <array>
#include <cmath>
#include <variant>

#include "core/check.hpp"
#include "models/metadata.hpp"
#include "models/train_options.hpp"
#include "qkv/models/trainer.hpp"

namespace qkv::models {

namespace {

const std::string kAdamW = "training.adamw.";
const std::string kLosses = "training.losses";
const std::string kLrs = "training.lrs";
const std::string kValidations = "training.validations";
const std::string kGenerator = "training.generator";
const std::string kData = "training.data";

/// An option under its name, with its range.
struct OptionRange {
    const char* name;
    std::variant<std::int64_t TrainOptions::*, double TrainOptions::*> member;
    double lowest, highest;
};

constexpr double kAny = 1e9;

const std::array<OptionRange, 12>& option_ranges() {
    constexpr auto kSequences = static_cast<double>(kMaxSequences);
    constexpr auto kSteps = static_cast<double>(kMaxSteps);
    static const std::array<OptionRange, 12> ranges{{
        {"steps", &TrainOptions::steps, 1, kSteps},
        {"batch", &TrainOptions::batch, 1, kSequences},
        {"accumulate", &TrainOptions::accumulate, 1, kSequences},
        {"lr", &TrainOptions::lr, 0, kAny},
        {"min_lr", &TrainOptions::min_lr, 0, kAny},
        {"warmup", &TrainOptions::warmup, 0, kSteps},
        {"weight_decay", &TrainOptions::weight_decay, 0, kAny},
        {"clip", &TrainOptions::clip, 0, kAny},
        {"evaluate_every", &TrainOptions::evaluate_every, 1, kSteps},
        {"validation_sequences", &TrainOptions::validation_sequences, 1, kSequences},
        {"save_every", &TrainOptions::save_every, 0, kSteps},
        {"patience", &TrainOptions::patience, 0, kSteps},
    }};
    return ranges;
}

const Tensor& tensor_entry(const ModelFile& file, const std::string& key, std::int64_t columns,
                           const std::string& name) {
    const auto found = file.tensors.find(key);
    if (found == file.tensors.end()) {
        fail(ErrorCode::format, name, " has no tensor ", key, "; expected a file that training saved");
    }
    const Tensor& tensor = found->second;
    const bool fits = columns == 1 ? tensor.rank() == 1 : tensor.rank() == 2 && tensor.size(1) == columns;
    if (!fits || tensor.size(0) > kMaxSteps) {
        fail(ErrorCode::format, name, ": tensor ", key, " has shape ", to_string(tensor.shape()), "; expected ",
             columns == 1 ? "[steps]" : "[evaluations, 3]", ", at most ", kMaxSteps, " of them");
    }
    return tensor;
}

History history_of(const ModelFile& file, const std::string& name) {
    History history;
    const Tensor& losses = tensor_entry(file, kLosses, 1, name);
    history.losses.assign(losses.values().begin(), losses.values().end());
    const Tensor& lrs = tensor_entry(file, kLrs, 1, name);
    if (lrs.numel() != losses.numel()) {
        fail(ErrorCode::format, name, ": ", kLrs, " has ", lrs.numel(), " steps, ", kLosses, " ", losses.numel());
    }
    history.lrs.assign(lrs.values().begin(), lrs.values().end());
    const Tensor& validations = tensor_entry(file, kValidations, 3, name);
    std::int64_t last = 0;
    for (std::int64_t row = 0; row < validations.size(0); ++row) {
        const float step = validations(row, 0);
        if (!(step > static_cast<float>(last) && step <= static_cast<float>(history.losses.size())) ||
            std::floor(step) != step) {
            fail(ErrorCode::format, name, ": tensor ", kValidations, " has step ", step, " in row ", row,
                 "; expected rising whole numbers up to ", history.losses.size());
        }
        last = static_cast<std::int64_t>(step);
        history.validations.push_back({.step = last, .loss = validations(row, 1), .accuracy = validations(row, 2)});
    }
    return history;
}

/// A step moves every parameter, so each has moments of as many steps as there are losses.
void check_moments(const ModelFile& file, const nn::ParameterList<float>& parameters, std::int64_t steps,
                   const std::string& name) {
    for (const auto& [parameter, unused] : parameters) {
        const auto step = file.tensors.find(concat(kAdamW, parameter, ".step"));
        const bool has = step != file.tensors.end() && step->second.numel() == 1;
        const float done = has ? step->second.data()[0] : 0.0F;
        if (done != static_cast<float>(steps)) {
            fail(ErrorCode::format, name, ": ", kAdamW, parameter, ".step is ", has ? concat(done) : "missing",
                 "; expected ", steps, ", as many as losses");
        }
        const auto squares = file.tensors.find(concat(kAdamW, parameter, ".exp_avg_sq"));
        if (squares != file.tensors.end() &&
            std::ranges::any_of(squares->second.values(), [](float value) { return value < 0; })) {
            fail(ErrorCode::format, name, ": ", squares->first, " holds a number below 0; expected means of squares");
        }
    }
}

}  // namespace

TrainOptions checked(const TrainOptions& options) {
    for (const OptionRange& range : option_ranges()) {
        std::visit(
            [&](auto member) {
                const auto value = static_cast<double>(options.*member);
                if (!(value >= range.lowest && value <= range.highest)) {
                    fail(ErrorCode::invalid_argument, range.name, " is ", options.*member, "; expected ", range.lowest,
                         " to ", range.highest);
                }
            },
            range.member);
    }
    return options;
}

std::optional<Task> trained_task(const ModelFile& file) {
    const auto found = file.metadata.find(kData);
    const std::vector<std::string>& names = task_names();
    for (std::size_t place = 0; found != file.metadata.end() && place < names.size(); ++place) {
        if (found->second.starts_with("task " + names[place] + " ")) {
            return static_cast<Task>(place);
        }
    }
    return std::nullopt;
}

TrainOptions train_options_of(const ModelFile& file, const std::string& name) {
    TrainOptions options;
    for (const OptionRange& range : option_ranges()) {
        const std::string key = std::string("training.") + range.name;
        if (const auto* whole = std::get_if<std::int64_t TrainOptions::*>(&range.member)) {
            options.*(*whole) = whole_entry(file.metadata, key, static_cast<std::int64_t>(range.lowest),
                                            static_cast<std::int64_t>(range.highest), name);
        } else {
            options.*std::get<double TrainOptions::*>(range.member) =
                real_entry(file.metadata, key, range.lowest, range.highest, name);
        }
    }
    return options;
}

void Trainer::save(const std::filesystem::path& path) const {
    ModelFile file = to_model_file(*model_);
    for (const OptionRange& range : option_ranges()) {
        const std::string key = std::string("training.") + range.name;
        if (const auto* whole = std::get_if<std::int64_t TrainOptions::*>(&range.member)) {
            file.metadata[key] = std::to_string(options_.*(*whole));
        } else {
            file.metadata[key] = to_text(options_.*std::get<double TrainOptions::*>(range.member));
        }
    }
    file.metadata[kGenerator] = words_to_text(generator_.state());
    file.metadata[kData] = data_->fingerprint();
    for (const nn::AdamW<float>* optimizer : {&matrices_, &vectors_}) {
        for (auto& [name, tensor] : optimizer->state_dict()) {
            file.tensors.emplace(kAdamW + name, std::move(tensor));
        }
    }
    file.tensors.emplace(kLosses, Tensor({steps_done()}, history_.losses));
    file.tensors.emplace(kLrs, Tensor({steps_done()}, history_.lrs));
    Tensor validations({static_cast<std::int64_t>(history_.validations.size()), 3});
    for (std::int64_t row = 0; row < validations.size(0); ++row) {
        const History::Validation& validation = history_.validations[static_cast<std::size_t>(row)];
        validations(row, 0) = static_cast<float>(validation.step);
        validations(row, 1) = validation.loss;
        validations(row, 2) = validation.accuracy;
    }
    file.tensors.emplace(kValidations, std::move(validations));
    for (const auto& [name, tensor] : file.tensors) {
        if (!finite(tensor)) {
            fail(ErrorCode::out_of_range, "after step ", steps_done(), " the tensor ", name, " is not finite; ",
                 path.string(), " is left as it was");
        }
    }
    io::write_safetensors(path, file.tensors, file.metadata);
}

void Trainer::resume(const ModelFile& file, const std::string& name) {
    if (const std::string& trained_on = entry(file.metadata, kData, name); trained_on != data_->fingerprint()) {
        fail(ErrorCode::shape_mismatch, name, " was trained on a ", trained_on, "; these data are a ",
             data_->fingerprint());
    }
    History history = history_of(file, name);
    check_moments(file, parameters_, static_cast<std::int64_t>(history.losses.size()), name);
    Generator generator;
    nn::AdamW<float> matrices = matrices_;
    nn::AdamW<float> vectors = vectors_;
    StateDict<float> model;
    StateDict<float> of_matrices;
    StateDict<float> of_vectors;
    for (const auto& [key, tensor] : file.tensors) {
        if (key.starts_with(kAdamW)) {
            const std::string entry_name = key.substr(kAdamW.size());
            const std::string parameter = entry_name.substr(0, entry_name.rfind('.'));
            const bool matrix = file.tensors.contains(parameter) && file.tensors.at(parameter).rank() >= 2;
            (matrix ? of_matrices : of_vectors).emplace(entry_name, tensor);
        } else if (!key.starts_with("training.")) {
            model.emplace(key, tensor);
        }
    }
    try {
        generator.set_state(words_entry(file.metadata, kGenerator, name));
        matrices.load_state_dict(of_matrices);
        vectors.load_state_dict(of_vectors);
        model_->gpt.load_state_dict(model);
    } catch (const Error& error) {
        fail(error.code() == ErrorCode::invalid_argument ? ErrorCode::format : error.code(), name, ": ", error.what());
    }
    history_ = std::move(history);
    generator_ = generator;
    matrices_ = std::move(matrices);
    vectors_ = std::move(vectors);
}

}  // namespace qkv::models
