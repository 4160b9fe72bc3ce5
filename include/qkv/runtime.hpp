// Where the library's threads live, and which instructions they use. Nothing is global: a program holds as many
// Runtimes as it likes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "qkv/export.h"
#include "qkv/instruction_set.hpp"

namespace qkv QKV_EXPORT {

class ThreadPool;

/// A number of threads, or the caller's own way of running tasks; and an instruction set. Safe to use from several
/// threads at once, and from inside a task. Results never depend on the number of threads.
class Runtime {
public:
    /// body(task) for every task in [0, tasks), in any order, on any threads, possibly at once; returns when all are
    /// done. Must pass on an exception that a body throws, or keep it until all are done and then throw it.
    using ParallelFor = std::function<void(std::int64_t tasks, const std::function<void(std::int64_t)>& body)>;

    /// `threads` counts the calling thread; 0 means one per hardware thread. They are started by the first call that
    /// can use them, and again in a child after fork. `set` forces an instruction set; without one it is
    /// default_instruction_set(). Throws Error(invalid_argument) unless 0 <= threads <= 4096, Error(unsupported) when
    /// the machine has not got `set`.
    explicit Runtime(std::int64_t threads = 0, std::optional<InstructionSet> set = std::nullopt);

    /// Work is cut into at most `tasks` tasks and given to `parallel_for`; no thread is ever started.
    Runtime(std::int64_t tasks, ParallelFor parallel_for, std::optional<InstructionSet> set = std::nullopt);

    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;
    Runtime(Runtime&&) = delete;
    Runtime& operator=(Runtime&&) = delete;
    ~Runtime();

    /// How many tasks can run at once.
    [[nodiscard]] std::int64_t threads() const noexcept { return threads_; }

    /// The instructions that kernels use.
    [[nodiscard]] InstructionSet instruction_set() const noexcept { return set_; }

    /// Runs body(0) .. body(tasks - 1) on the pool and the calling thread, or on the caller's parallel_for. The first
    /// exception that a body throws is thrown here after all have ended.
    void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& body) const;

    /// One thread, the calling one: what functions use that are given no Runtime.
    [[nodiscard]] static const Runtime& serial();

private:
    [[nodiscard]] ThreadPool& pool() const;

    std::int64_t threads_;
    InstructionSet set_;
    ParallelFor caller_;
    mutable std::atomic<ThreadPool*> pool_{nullptr};
};

}  // namespace qkv QKV_EXPORT
