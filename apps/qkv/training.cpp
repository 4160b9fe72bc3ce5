#include "training.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>

#include "commands.hpp"
#include "output.hpp"
#include "qkv/error.hpp"
#include "qkv/explain.hpp"

namespace qkv::app {

namespace {

volatile std::sig_atomic_t interrupted = 0;

void on_signal(int) { interrupted = 1; }

/// While it lives, the first SIGINT or SIGTERM sets `interrupted`; a second one ends the program as usual.
class SignalWatch {
public:
    SignalWatch() {
        interrupted = 0;
        struct sigaction action{};
        action.sa_handler = on_signal;
        action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
        watch(SIGINT, action, old_interrupt_);
        watch(SIGTERM, action, old_terminate_);
    }
    ~SignalWatch() {
        (void)sigaction(SIGINT, &old_interrupt_, nullptr);
        (void)sigaction(SIGTERM, &old_terminate_, nullptr);
    }
    SignalWatch(const SignalWatch&) = delete;
    SignalWatch& operator=(const SignalWatch&) = delete;
    SignalWatch(SignalWatch&&) = delete;
    SignalWatch& operator=(SignalWatch&&) = delete;

private:
    static void watch(int signal, const struct sigaction& action, struct sigaction& old) {
        (void)sigaction(signal, nullptr, &old);
        if (old.sa_handler != SIG_IGN) {  // what runs in the background on purpose stays deaf
            (void)sigaction(signal, &action, nullptr);
        }
    }

    struct sigaction old_interrupt_{}, old_terminate_{};
};

/// One JSON object a line and a step. It says only what the history holds, so that the file of a resumed training is
/// that of an uninterrupted one: what was written past the checkpoint is written anew.
class Log {
public:
    Log(const std::string& path, const models::Trainer& trainer)
        : path_(path), trainer_(trainer), file_(std::fopen(path.c_str(), "w"), &std::fclose) {
        if (file_ == nullptr) {
            fail();
        }
        for (std::int64_t step = 1; step <= trainer.steps_done(); ++step) {
            write(step);
        }
        flush();
    }

    void write(std::int64_t step) {
        const models::History& history = trainer_.history();
        std::string line =
            fmt::format(R"({{"step":{},"loss":{},"lr":{})", step, history.losses[static_cast<std::size_t>(step - 1)],
                        history.lrs[static_cast<std::size_t>(step - 1)]);
        const auto found = std::ranges::lower_bound(history.validations, step, {}, &models::History::Validation::step);
        if (found != history.validations.end() && found->step == step) {
            line += fmt::format(R"(,"validation_loss":{},"validation_accuracy":{})", found->loss, found->accuracy);
        }
        line += "}\n";
        if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size()) {
            fail();
        }
    }

    void flush() {
        if (std::fflush(file_.get()) != 0) {
            fail();
        }
    }

private:
    [[noreturn]] void fail() const {
        throw Error(ErrorCode::io, fmt::format("cannot write {}: {}", explain::in_quotes(path_), std::strerror(errno)));
    }

    std::string path_;
    const models::Trainer& trainer_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

std::string duration(double seconds) {
    const auto whole = std::llround(seconds);
    return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

/// What standard error shows of it: one line that renews itself on a terminal, else a line an evaluation.
class Progress {
public:
    Progress(const models::Trainer& trainer, bool quiet)
        : trainer_(trainer), quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}

    void show(const models::Trainer::Step& step) {
        tokens_ += step.tokens;
        ++steps_;
        if (quiet_ || (!terminal_ && !step.validation)) {
            return;
        }
        const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
        const bool often = elapsed - shown_ < 0.1 && !step.validation;  // nobody reads faster
        if (often) {
            return;
        }
        shown_ = elapsed;
        const std::int64_t left = trainer_.options().steps - step.step;
        const auto line_of = [&](std::string_view right, std::string_view tokens) {
            std::string line = fmt::format("step {}/{}  loss {:.4f}", step.step, trainer_.options().steps, step.loss);
            if (!trainer_.history().validations.empty()) {
                const models::History::Validation& last = trainer_.history().validations.back();
                line += fmt::format("  validation {:.4f} ({:.1f} %{})", last.loss, 100 * last.accuracy, right);
            }
            return line + fmt::format("  {:.0f} {}/s  {} left", static_cast<double>(tokens_) / elapsed, tokens,
                                      duration(elapsed / static_cast<double>(steps_) * static_cast<double>(left)));
        };
        std::string line = line_of(" right", "tokens");
        if (terminal_) {  // a line that breaks is not renewed but scrolls
            constexpr std::int64_t kUsual = 80;
            const std::int64_t columns = terminal_width(STDERR_FILENO);
            const auto room = static_cast<std::size_t>((columns > 0 ? columns : kUsual) - 1);
            line = line.size() > room ? line_of("", "tok") : line;
            line.resize(std::min(line.size(), room));
        }
        fmt::print(stderr, "{}{}{}", terminal_ ? "\r\x1b[K" : "", line, terminal_ ? "" : "\n");
        (void)std::fflush(stderr);
        open_line_ = terminal_;
    }

    /// A sentence under the line.
    void say(const std::string& sentence) {
        end_line();
        if (!quiet_) {
            fmt::print(stderr, "{}\n", sentence);
        }
    }

    void end_line() {
        if (open_line_) {
            fmt::print(stderr, "\n");
            open_line_ = false;
        }
    }

private:
    using Clock = std::chrono::steady_clock;
    const models::Trainer& trainer_;
    bool quiet_, terminal_, open_line_ = false;
    Clock::time_point start_ = Clock::now();
    double shown_ = 0;
    std::int64_t tokens_ = 0, steps_ = 0;
};

class Training {
public:
    Training(models::Trainer& trainer, const TrainingFiles& files)
        : trainer_(trainer), files_(files), progress_(trainer, files.quiet) {
        // Whether that can be done is to be known before anything is learned; the model comes last, so that nothing is
        // there when it cannot.
        if (files.log) {
            log_.emplace(*files.log, trainer);
        }
        save();
        // The best so far counts only if it was kept: by a training with patience, of which this one is the rest.
        if (files.patience && !std::filesystem::exists(best_file(files.out))) {
            first_counted_ = trainer.history().validations.size();
        }
    }

    void run() {
        const SignalWatch watch;
        try {
            while (!trainer_.finished() && !stopped_early()) {
                const models::Trainer::Step step = trainer_.step();
                progress_.show(step);
                after(step);
                if (interrupted != 0 && !trainer_.finished()) {
                    save();
                    progress_.end_line();
                    throw Stopped{fmt::format("stopped after step {} of {}; to go on: {}", step.step,
                                              trainer_.options().steps, files_.go_on)};
                }
            }
        } catch (...) {
            progress_.end_line();
            throw;
        }
        save();
        progress_.say(summary());
    }

private:
    /// How many evaluations there have been since the best one; none before the first.
    [[nodiscard]] std::optional<std::int64_t> evaluations_since_best() const {
        const auto counted = std::span(trainer_.history().validations).subspan(first_counted_);
        const auto best = std::ranges::min_element(counted, {}, &models::History::Validation::loss);
        return counted.empty() ? std::nullopt : std::optional(counted.end() - best - 1);
    }

    [[nodiscard]] bool stopped_early() const {
        return files_.patience && evaluations_since_best().value_or(0) >= *files_.patience;
    }

    void after(const models::Trainer::Step& step) {
        if (log_) {
            log_->write(step.step);
        }
        if (step.validation) {
            if (files_.patience && evaluations_since_best() == 0) {
                trainer_.save(best_file(files_.out));
            }
            if (log_) {
                log_->flush();
            }
        }
        if (step.step % files_.save_every == 0) {
            save();
        }
    }

    void save() {
        if (files_.plot) {
            models::write_loss_curve(trainer_.history(), *files_.plot);
        }
        if (log_) {
            log_->flush();
        }
        trainer_.save(files_.out);
    }

    [[nodiscard]] std::string summary() const {
        std::string text = stopped_early()
                               ? fmt::format(
                                     "Stopped after step {}: no better validation loss in {} evaluations; the "
                                     "best model is {}\n",
                                     trainer_.steps_done(), *files_.patience, best_file(files_.out))
                               : "";
        text += fmt::format("Wrote {}", files_.out);
        const bool best = files_.patience && evaluations_since_best();
        for (const auto& file : {best ? std::optional(best_file(files_.out)) : std::nullopt, files_.plot, files_.log}) {
            text += file ? ", " + *file : "";
        }
        return text;
    }

    models::Trainer& trainer_;
    const TrainingFiles& files_;
    Progress progress_;
    std::optional<Log> log_;
    std::size_t first_counted_ = 0;
};

}  // namespace

std::string best_file(const std::string& out) {
    std::filesystem::path path(out);
    return path.replace_filename(path.stem().string() + ".best" + path.extension().string()).string();
}

void run_training(models::Trainer& trainer, const TrainingFiles& files) { Training(trainer, files).run(); }

}  // namespace qkv::app
