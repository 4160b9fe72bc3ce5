#include "qkv/models/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

#include "core/check.hpp"
#include "models/metadata.hpp"
#include "models/train_options.hpp"

namespace qkv::models {

namespace {

constexpr double kBeta2 = 0.99;  // small batches: the second moment may follow them sooner than AdamW's usual 0.999

nn::ParameterList<float> with_rank(const nn::ParameterList<float>& parameters, bool matrices) {
    nn::ParameterList<float> chosen;
    std::ranges::copy_if(parameters, std::back_inserter(chosen),
                         [matrices](const auto& named) { return (named.second->value.rank() >= 2) == matrices; });
    return chosen;
}

/// Where the largest of each row of logits is the target, and how many rows have a target.
std::pair<std::int64_t, std::int64_t> count_right(const Tensor& logits, std::span<const std::int64_t> targets) {
    std::int64_t right = 0;
    std::int64_t counted = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
        if (targets[i] != kNoTarget) {
            const std::span<const float> row = logits.row(static_cast<std::int64_t>(i));
            right += std::ranges::max_element(row) - row.begin() == targets[i] ? 1 : 0;
            ++counted;
        }
    }
    return {right, counted};
}

[[noreturn]] void refuse_not_finite(std::int64_t step, std::string_view what, double value, const std::string& first) {
    value = std::fabs(value);  // a NaN's sign says nothing
    fail(ErrorCode::out_of_range, "step ", step, ": the ", what, " is ", value,
         "; the first tensor that is not finite is ", first, "; a smaller lr, a longer warm-up or clipping may help");
}

}  // namespace

double learning_rate(const TrainOptions& options, std::int64_t step) {
    const auto at = static_cast<double>(step);
    const auto warmup = static_cast<double>(options.warmup);
    const auto steps = static_cast<double>(options.steps);
    if (step <= options.warmup) {
        return options.lr * at / warmup;
    }
    const double share = steps > warmup ? std::min((at - warmup) / (steps - warmup), 1.0) : 1.0;
    return options.min_lr + (options.lr - options.min_lr) * (1 + std::cos(std::numbers::pi * share)) / 2;
}

Trainer::Trainer(LanguageModel& model, const Data& data, const TrainOptions& options, const Generator& generator,
                 const Runtime& runtime)
    : model_(&model),
      data_(&data),
      options_(checked(options)),
      generator_(generator),
      runtime_(&runtime),
      parameters_(model.gpt.parameters()),
      matrices_(with_rank(parameters_, true), {.beta2 = kBeta2, .weight_decay = options.weight_decay}),
      vectors_(with_rank(parameters_, false), {.beta2 = kBeta2, .weight_decay = 0}) {}

Trainer::Step Trainer::step() {
    Step step;
    step.step = steps_done() + 1;
    step.lr = learning_rate(options_, step.step);
    nn::Gpt& gpt = model_->gpt;
    gpt.train();
    gpt.zero_gradients();
    const auto parts = static_cast<double>(options_.accumulate);
    double loss = 0;
    for (std::int64_t part = 0; part < options_.accumulate; ++part) {
        const Batch batch = data_->draw(options_.batch, generator_);
        Tensor logits = gpt.forward(batch.ids, batch.sequences, {.generator = &generator_, .runtime = runtime_});
        nn::CrossEntropy<float> result = nn::cross_entropy_backward(
            std::move(logits), batch.targets, {.ignore_index = kNoTarget, .scale = 1 / parts}, *runtime_);
        if (!std::isfinite(result.loss)) {
            refuse_not_finite(step.step, "loss", result.loss, first_not_finite(batch));
        }
        gpt.backward(std::move(result.d_logits));
        loss += result.loss / parts;
        step.tokens += static_cast<std::int64_t>(batch.ids.size());
    }
    step.gradient_norm = nn::clip_gradient_norm(
        parameters_, options_.clip > 0 ? options_.clip : std::numeric_limits<double>::infinity(), *runtime_);
    if (!std::isfinite(step.gradient_norm)) {
        refuse_not_finite(step.step, "norm of the gradients", step.gradient_norm, first_gradient_not_finite());
    }
    for (nn::AdamW<float>* optimizer : {&matrices_, &vectors_}) {
        optimizer->set_lr(step.lr);
        optimizer->step(*runtime_);
    }
    step.loss = static_cast<double>(static_cast<float>(loss));
    if (step.step % options_.evaluate_every == 0 || step.step >= options_.steps) {
        step.validation = evaluate();
        if (!std::isfinite(static_cast<float>(step.validation->loss))) {
            refuse_not_finite(step.step, "validation loss", step.validation->loss,
                              first_not_finite(data_->validation(1)));
        }
    }
    history_.losses.push_back(static_cast<float>(loss));
    history_.lrs.push_back(static_cast<float>(step.lr));
    if (step.validation) {
        history_.validations.push_back({.step = step.step,
                                        .loss = static_cast<float>(step.validation->loss),
                                        .accuracy = static_cast<float>(step.validation->accuracy)});
    }
    return step;
}

Evaluation Trainer::evaluate() {
    nn::Gpt& gpt = model_->gpt;
    gpt.eval();
    const Batch all = data_->validation(options_.validation_sequences);
    const auto tokens = static_cast<std::int64_t>(all.ids.size()) / all.sequences;
    double losses = 0;
    std::int64_t right = 0;
    std::int64_t counted = 0;
    for (std::int64_t first = 0; first < all.sequences; first += options_.batch) {
        const std::int64_t sequences = std::min(options_.batch, all.sequences - first);
        const auto part = [&](const std::vector<std::int64_t>& from) {
            return std::span(from).subspan(static_cast<std::size_t>(first * tokens),
                                           static_cast<std::size_t>(sequences * tokens));
        };
        const Tensor logits = std::as_const(gpt).forward(part(all.ids), sequences, {.runtime = runtime_});
        const auto [right_here, counted_here] = count_right(logits, part(all.targets));
        losses += nn::cross_entropy(logits, part(all.targets), {.ignore_index = kNoTarget}, *runtime_) *
                  static_cast<double>(counted_here);
        right += right_here;
        counted += counted_here;
    }
    return {.loss = losses / static_cast<double>(counted),
            .accuracy = static_cast<double>(right) / static_cast<double>(counted)};
}

/// What on the way to a loss that is not finite is the first that is not.
std::string Trainer::first_not_finite(const Batch& batch) const {
    for (const auto& [name, parameter] : parameters_) {
        if (!finite(parameter->value)) {
            return "the parameter " + name;
        }
    }
    model_->gpt.eval();
    Trace trace;
    (void)std::as_const(model_->gpt).forward(batch.ids, batch.sequences, {.trace = &trace, .runtime = runtime_});
    for (const auto& [name, tensor] : trace.entries()) {
        const bool hidden = name.ends_with(".masked");  // −∞ on purpose
        if (!hidden && !finite(tensor)) {
            return name;
        }
    }
    return "the loss itself";
}

/// As first_not_finite, of gradients, which go from the last parameter to the first.
std::string Trainer::first_gradient_not_finite() const {
    const auto odd = std::find_if(parameters_.rbegin(), parameters_.rend(),
                                  [](const auto& named) { return !finite(named.second->gradient); });
    return odd != parameters_.rend() ? "the gradient of " + odd->first : "the norm of all gradients together";
}

}  // namespace qkv::models
