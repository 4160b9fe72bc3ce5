#include "output.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "qkv/error.hpp"

namespace qkv::app {

namespace {

std::string_view environment(const char* name) {
    const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): the program has one thread here
    return value != nullptr ? value : "";
}

[[noreturn]] void fail_output() {
    throw Error(ErrorCode::io, std::string("cannot write to standard output: ") + std::strerror(errno));
}

void on_interrupt(int signal_number) {
    constexpr std::string_view kReset = "\x1b[0m\n";
    (void)!write(STDOUT_FILENO, kReset.data(), kReset.size());
    (void)std::signal(signal_number, SIG_DFL);
    (void)std::raise(signal_number);
}

}  // namespace

void write_output(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
        fail_output();
    }
}

void finish_output() {
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
        fail_output();
    }
}

explain::Colour output_colour(When when) {
    const std::string_view term = environment("TERM");
    const bool terminal = isatty(STDOUT_FILENO) == 1 && term != "dumb" && environment("NO_COLOR").empty();
    if (when == When::never || (when == When::automatic && !terminal)) {
        return explain::Colour::none;
    }
    const std::string_view colorterm = environment("COLORTERM");
    const bool true_colour = colorterm == "truecolor" || colorterm == "24bit";
    return true_colour ? explain::Colour::true_colour : explain::Colour::palette_256;
}

std::int64_t terminal_width(int descriptor) {
    winsize size{};
    return isatty(descriptor) == 1 && ioctl(descriptor, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

std::int64_t output_width() {
    constexpr std::int64_t kUsual = 80;
    constexpr std::int64_t kNarrowest = 40;
    std::int64_t columns = terminal_width(STDOUT_FILENO);
    if (columns == 0) {
        columns = std::strtoll(std::string(environment("COLUMNS")).c_str(), nullptr, 10);
    }
    return columns <= 0 ? kUsual : std::clamp<std::int64_t>(columns, kNarrowest, 1000);
}

void restore_colours_on_interrupt() { (void)std::signal(SIGINT, on_interrupt); }

}  // namespace qkv::app
