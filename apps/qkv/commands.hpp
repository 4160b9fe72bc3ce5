// The subcommands of the program.
#pragma once

#include <CLI/CLI.hpp>

namespace qkv::app {

/// Adds `qkv explain`; the command runs when its callback does.
void add_explain_command(CLI::App& program);

}  // namespace qkv::app
