// The subcommands of the program.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace qkv::app {

/// A command that was told to stop and did so in good order: status 130 and this line.
struct Stopped {
    std::string message;
};

/// Adds `qkv explain`; the command runs when its callback does.
void add_explain_command(CLI::App& program);

/// Adds `qkv train`: a small GPT learns a text or a task.
void add_train_command(CLI::App& program);

/// Adds `qkv generate`: text from a trained model.
void add_generate_command(CLI::App& program);

/// Adds `qkv info`: the instruction sets that this machine has, which is used, and how many threads.
void add_info_command(CLI::App& program);

}  // namespace qkv::app
