#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string>

#include "commands.hpp"
#include "output.hpp"
#include "qkv/instruction_set.hpp"
#include "qkv/runtime.hpp"

namespace qkv::app {

namespace {

std::string machine() {
    const InstructionSet used = default_instruction_set();
    std::string text = fmt::format("qkv {}\n\nInstruction sets, best first:\n", QKV_VERSION);
    for (const InstructionSetInfo& info : instruction_sets()) {
        const char* state = info.set == used ? "used" : info.available ? "available" : "missing";
        text += fmt::format("  {:<12}{:<11}{}\n", name(info.set), state, info.reason);
    }
    text += fmt::format("\nQKV_ISA=NAME forces one. Threads: {}.\n", Runtime().threads());
    return text;
}

}  // namespace

void add_info_command(CLI::App& program) {
    CLI::App* command = program.add_subcommand("info", "What this machine has and the program uses of it");
    command->callback([] {
        write_output(machine());
        finish_output();
    });
}

}  // namespace qkv::app
