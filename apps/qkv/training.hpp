// A training as the program runs it: what it says on the way, where it saves, how it ends early.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "qkv/models.hpp"

namespace qkv::app {

struct TrainingFiles {
    std::string out;                       ///< model and training state
    std::optional<std::string> plot;       ///< the loss curve as SVG
    std::optional<std::string> log;        ///< a JSON line a step
    std::int64_t save_every = 1;           ///< steps
    std::optional<std::int64_t> patience;  ///< evaluations without a better loss after which to stop
    bool quiet = false;
    std::string go_on;  ///< the command that goes on after an interruption
};

/// Where the best model of a training with patience is kept: model.safetensors → model.best.safetensors.
[[nodiscard]] std::string best_file(const std::string& out);

/// Trains to the last step, until it no longer gets better, or until SIGINT or SIGTERM; saves in each case. Throws
/// Stopped after a signal.
void run_training(models::Trainer& trainer, const TrainingFiles& files);

}  // namespace qkv::app
