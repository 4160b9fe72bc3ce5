// Threads that help whoever asks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qkv {

/// Jobs wait in a line; a helper takes one task at a time from the first that has any left. Whoever posts a job works
/// on it too and so never waits for a helper to come: calls from several threads, and from inside tasks, cannot block
/// each other. It takes tasks from the front and helpers take them from the back, so that two threads find in their
/// caches the rows that they wrote in the job before.
///
/// Who has nothing to do watches for a moment before it sleeps: a layer's next job comes within microseconds, and
/// waking a thread takes tens of them.
class ThreadPool {
public:
    using Body = std::function<void(std::int64_t)>;

    /// Starts `helpers` threads. `abandoned` is the pool of a parent process, kept reachable but never touched.
    ThreadPool(std::int64_t helpers, ThreadPool* abandoned);
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;
    ThreadPool(ThreadPool&&) = delete;
    ThreadPool& operator=(ThreadPool&&) = delete;
    ~ThreadPool();

    /// Runs body(0) .. body(tasks - 1) and returns when all have ended; throws the first exception they threw.
    void run(std::int64_t tasks, const Body& body);

    /// The process that owns the threads: after fork, a child has this object but not its threads.
    [[nodiscard]] int process() const noexcept { return process_; }

private:
    struct Job {
        const Body* body = nullptr;
        std::int64_t tasks = 0;
        std::int64_t begin = 0;  // of the tasks that nobody has taken
        std::int64_t end = 0;
        std::atomic<std::int64_t> ended = 0;  // written with the mutex held, as all of this; watched without
        std::exception_ptr error;
        std::condition_variable done;
        std::atomic<Job*> next = nullptr;  // atomic only so that the line is links of one kind
    };

    void help();
    void stop() noexcept;
    /// Runs the job's first task, or its last one; `lock` is held before and after. The job leaves the line with the
    /// task that is left over.
    void run_one(Job& job, bool first, std::unique_lock<std::mutex>& lock);

    std::mutex mutex_;
    std::condition_variable posted_;
    std::atomic<Job*> first_ = nullptr;  // written with the mutex held; watched without
    std::atomic<bool> stopping_ = false;
    bool watches_;  // not where threads outnumber processors: it would hold up those who work
    int process_;
    ThreadPool* abandoned_;
    std::vector<std::thread> helpers_;
};

}  // namespace qkv
