#include "core/thread_pool.hpp"

#include <unistd.h>

namespace qkv {

ThreadPool::ThreadPool(std::int64_t helpers, ThreadPool* abandoned) : process_(::getpid()), abandoned_(abandoned) {
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
    Job** end = &first_;
    while (*end != nullptr) {
        end = &(*end)->next;
    }
    *end = &job;
    posted_.notify_all();
    while (job.taken < job.tasks) {
        run_one(job, lock);
    }
    job.done.wait(lock, [&job] { return job.ended == job.tasks; });
    if (job.error) {
        std::rethrow_exception(job.error);
    }
}

void ThreadPool::run_one(Job& job, std::unique_lock<std::mutex>& lock) {
    const std::int64_t task = job.taken++;
    if (job.taken == job.tasks) {
        Job** link = &first_;
        while (*link != &job) {
            link = &(*link)->next;
        }
        *link = job.next;
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
    std::unique_lock lock(mutex_);
    while (true) {
        posted_.wait(lock, [this] { return stopping_ || first_ != nullptr; });
        if (stopping_) {
            return;
        }
        run_one(*first_, lock);
    }
}

}  // namespace qkv
