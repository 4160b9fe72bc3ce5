// qkv: attention explained. Results go to standard output, everything else to standard error.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "commands.hpp"
#include "options.hpp"
#include "output.hpp"
#include "qkv/error.hpp"
#include "qkv/explain.hpp"

namespace {

constexpr int kData = 1;       // a file, or the system, is at fault
constexpr int kUsage = 2;      // the command line is
constexpr int kStopped = 130;  // as shells report a program that Ctrl-C ended

/// One line, whatever the message quotes: a token or a file name may hold a line break or an escape sequence.
int complain(int status, const std::string& message) {
    fmt::print(stderr, "qkv: {}\n", qkv::explain::printable(message));
    return status;
}

void print(const std::string& text) {
    qkv::app::write_output(text);
    qkv::app::finish_output();
}

void run(CLI::App& program, int argc, char** argv) {
    try {
        program.parse(argc, argv);
        if (program.get_subcommands().empty()) {
            print(program.help());
        }
    } catch (const CLI::CallForHelp&) {
        const auto chosen = program.get_subcommands();
        print(chosen.empty() ? program.help() : chosen.front()->help(program.get_name()));
    } catch (const CLI::CallForVersion&) {
        print(program.version() + '\n');
    }
}

/// One line for whatever the command line parser refused, with the nearest word that it would have taken.
std::string explain_parse_error(const CLI::App& program, const CLI::ParseError& error) {
    const auto chosen = program.get_subcommands();
    const CLI::App& app = chosen.empty() ? program : *chosen.front();
    std::vector<std::string> known;
    for (const CLI::App* command : app.get_subcommands(nullptr)) {
        known.push_back(command->get_name());
    }
    const std::vector<std::string> commands = known;
    for (const CLI::Option* option : app.get_options()) {
        for (const std::string& name : option->get_lnames()) {
            known.push_back("--" + name);
        }
    }
    if (const auto extra = app.remaining(true); !extra.empty()) {
        const std::string& word = extra.front();
        const bool flag = word.starts_with('-');
        if (!flag && chosen.empty()) {
            return fmt::format("unknown command {}; expected explain, train, generate or info{}",
                               qkv::explain::in_quotes(word), qkv::app::suggestion(word, commands));
        }
        if (flag) {
            const std::string command = chosen.empty() ? "qkv" : "qkv " + app.get_name();
            return fmt::format("unknown option {}; see {} --help{}", qkv::explain::in_quotes(word), command,
                               qkv::app::suggestion(word.substr(0, word.find('=')), known));
        }
        return fmt::format("unexpected {}; TEXT is one argument, so quote it", qkv::explain::in_quotes(word));
    }
    std::string message = error.what();
    if (const auto end = message.find(" was given a disallowed flag override"); end != std::string::npos) {
        return fmt::format("--{} is a flag; it takes no value", message.substr(0, end));
    }
    for (char& character : message) {
        character = character == '\n' ? ' ' : character;
    }
    return message;
}

/// The exit status. What stops a command is one line on standard error.
int run_program(int argc, char** argv) {
    CLI::App program{"Attention, exact and explained: every number on the way from a sentence to its context.", "qkv"};
    program.set_version_flag("--version", std::string("qkv ") + QKV_VERSION);
    program.require_subcommand(0, 1);
    program.get_formatter()->column_width(34);
    qkv::app::add_explain_command(program);
    qkv::app::add_train_command(program);
    qkv::app::add_generate_command(program);
    qkv::app::add_info_command(program);
    program.footer("Start with: qkv explain");
    try {
        run(program, argc, argv);
        return 0;
    } catch (const CLI::ParseError& error) {
        return complain(kUsage, explain_parse_error(program, error));
    } catch (const qkv::app::Stopped& stopped) {
        return complain(kStopped, stopped.message);
    } catch (const qkv::Error& error) {
        using enum qkv::ErrorCode;
        const bool usage = error.code() == invalid_argument || error.code() == out_of_range;
        return complain(usage ? kUsage : kData, error.what());
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run_program(argc, argv);
    } catch (const std::bad_alloc&) {
        std::fputs("qkv: out of memory\n", stderr);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "qkv: %s\n", error.what());
    }
    return kData;
}
