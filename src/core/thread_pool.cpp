#include "core/thread_pool.hpp"

#include <unistd.h>

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

}  // namespace

ThreadPool::ThreadPool(std::int64_t helpers, ThreadPool* abandoned)
    : watches_(helpers < static_cast<std::int64_t>(std::thread::hardware_concurrency())),
      process_(::getpid()),
      abandoned_(abandoned) {
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
    std::unique_lock lock(mutex_);
    if (first_ == nullptr) {
        first_ = &job;
    } else {
        Job* last = first_;
        while (last->next != nullptr) {
            last = last->next;
        }
        last->next = &job;
    }
    posted_.notify_all();
    while (job.taken < job.tasks) {
        run_one(job, lock);
    }
    const auto ended = [&job] { return job.ended == job.tasks; };
    if (!ended()) {
        lock.unlock();
        watch(ended);
        lock.lock();
    }
    job.done.wait(lock, ended);
    if (job.error) {
        std::rethrow_exception(job.error);
    }
}

void ThreadPool::run_one(Job& job, std::unique_lock<std::mutex>& lock) {
    const std::int64_t task = job.taken++;
    if (job.taken == job.tasks) {
        if (first_ == &job) {
            first_ = job.next;
        } else {
            Job* before = first_;
            while (before->next != &job) {
                before = before->next;
            }
            before->next = job.next;
        }
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
        if (!wanted()) {
            lock.unlock();
            watch(wanted);
            lock.lock();
        }
        posted_.wait(lock, wanted);
        if (stopping_) {
            return;
        }
        run_one(*first_, lock);
    }
}

template <class Ready>
void ThreadPool::watch(const Ready& ready) const {
    if (!watches_) {
        return;
    }
    const auto end = std::chrono::steady_clock::now() + kWatch;
    while (!ready() && std::chrono::steady_clock::now() < end) {
        pause();
    }
}

}  // namespace qkv
