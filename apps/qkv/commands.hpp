// The subcommands of the program.
#pragma once

#include <CLI/CLI.hpp>

namespace qkv::app {

/// Adds `qkv explain`; the command runs when its callback does.
void add_explain_command(CLI::App& program);

/// Adds `qkv info`: the instruction sets that this machine has, which is used, and how many threads.
void add_info_command(CLI::App& program);

}  // namespace qkv::app
