#include "core/thread_pool.hpp"

#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <chrono>

namespace qkv {

namespace {

/// Twice what sleeping and waking take, about.
constexpr std::chrono::microseconds kWatch{100};

/// Leaves the processor's other resources to a sibling for a moment.
void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/// Whether ready() before `end`.
template <class Ready>
bool watch(const Ready& ready, std::chrono::steady_clock::time_point end) {
    while (!ready()) {
        if (std::chrono::steady_clock::now() >= end) {
            return false;
        }
        pause();
    }
    return true;
}

/// Of the processors, those that this process may use.
std::int64_t usable_processors() noexcept {
#if defined(__linux__)
    cpu_set_t set;
    if (::sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    return static_cast<std::int64_t>(std::thread::hardware_concurrency());
}

}  // namespace

ThreadPool::ThreadPool(std::int64_t helpers, ThreadPool* abandoned)
    : watches_(helpers < usable_processors()), process_(::getpid()), abandoned_(abandoned) {
    helpers_.reserve(static_cast<std::size_t>(helpers));
    try {
        for (std::int64_t helper = 0; helper < helpers; ++helper) {
            helpers_.emplace_back([this] { help(); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() noexcept {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    posted_.notify_all();
    for (std::thread& helper : helpers_) {
        helper.join();
    }
}

void ThreadPool::run(std::int64_t tasks, const Body& body) {
    Job job;
    job.body = &body;
    job.tasks = tasks;
    job.end = tasks;
    std::unique_lock lock(mutex_);
    std::atomic<Job*>* last = &first_;
    while (*last != nullptr) {
        last = &last->load()->next;
    }
    *last = &job;
    posted_.notify_all();
    while (job.begin < job.end) {
        run_one(job, true, lock);
    }
    const auto ended = [&job] { return job.ended == job.tasks; };
    if (watches_ && !ended()) {
        lock.unlock();
        (void)watch(ended, std::chrono::steady_clock::now() + kWatch);
        lock.lock();
    }
    job.done.wait(lock, ended);
    if (job.error) {
        std::rethrow_exception(job.error);
    }
}

void ThreadPool::run_one(Job& job, bool first, std::unique_lock<std::mutex>& lock) {
    const std::int64_t task = first ? job.begin++ : --job.end;
    if (job.begin == job.end) {
        std::atomic<Job*>* link = &first_;
        while (*link != &job) {
            link = &link->load()->next;
        }
        *link = job.next.load();
    }
    lock.unlock();
    std::exception_ptr error;
    try {
        (*job.body)(task);
    } catch (...) {
        error = std::current_exception();
    }
    lock.lock();
    if (error && !job.error) {
        job.error = error;
    }
    // Told while the lock is held: once it is free the job may be gone from its owner's stack.
    if (++job.ended == job.tasks) {
        job.done.notify_one();
    }
}

void ThreadPool::help() {
    const auto wanted = [this] { return stopping_ || first_ != nullptr; };
    std::unique_lock lock(mutex_);
    while (true) {
        // Somebody else may have taken what was seen: then there is time left to watch on.
        const auto end = std::chrono::steady_clock::now() + kWatch;
        for (bool in_time = watches_; in_time && !wanted();) {
            lock.unlock();
            in_time = watch(wanted, end);
            lock.lock();
        }
        posted_.wait(lock, wanted);
        if (stopping_) {
            return;
        }
        run_one(*first_, false, lock);
    }
}

}  // namespace qkv
