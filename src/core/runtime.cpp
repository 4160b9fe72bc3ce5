#include "qkv/runtime.hpp"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "core/check.hpp"
#include "core/instruction_set.hpp"
#include "core/thread_pool.hpp"

namespace qkv {

namespace {

constexpr std::int64_t kMostThreads = 4096;

std::int64_t checked_threads(std::int64_t threads) {
    if (threads < 0 || threads > kMostThreads) {
        fail(ErrorCode::invalid_argument, "Runtime: threads is ", threads, "; expected 0 to ", kMostThreads);
    }
    return threads == 0 ? std::max<std::int64_t>(1, std::thread::hardware_concurrency()) : threads;
}

InstructionSet checked_set(std::optional<InstructionSet> set) {
    if (!set) {
        return default_instruction_set();
    }
    require_available(*set, "Runtime: set");
    return *set;
}

}  // namespace

Runtime::Runtime(std::int64_t threads, std::optional<InstructionSet> set)
    : threads_(checked_threads(threads)), set_(checked_set(set)) {}

Runtime::Runtime(std::int64_t tasks, ParallelFor parallel_for, std::optional<InstructionSet> set)
    : threads_(checked_threads(tasks)), set_(checked_set(set)), caller_(std::move(parallel_for)) {
    if (!caller_) {
        fail(ErrorCode::invalid_argument, "Runtime: parallel_for is empty; expected a function");
    }
}

Runtime::~Runtime() {
    ThreadPool* pool = pool_.load();
    // A child that never used its parent's pool cannot join threads that it does not have: let go of them.
    if (pool != nullptr && pool->process() == ::getpid()) {
        delete pool;
    }
}

const Runtime& Runtime::serial() {
    static const Runtime one(1);
    return one;
}

ThreadPool& Runtime::pool() const {
    ThreadPool* current = pool_.load(std::memory_order_acquire);
    while (current == nullptr || current->process() != ::getpid()) {
        auto fresh = std::make_unique<ThreadPool>(threads_ - 1, current);
        if (pool_.compare_exchange_strong(current, fresh.get(), std::memory_order_acq_rel)) {
            return *fresh.release();
        }
    }
    return *current;
}

void Runtime::parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& body) const {
    if (caller_) {
        if (tasks > 0) {
            caller_(tasks, body);
        }
        return;
    }
    if (threads_ > 1 && tasks > 1) {
        pool().run(tasks, body);
        return;
    }
    std::exception_ptr error;
    for (std::int64_t task = 0; task < tasks; ++task) {
        try {
            body(task);
        } catch (...) {
            error = error ? error : std::current_exception();
        }
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

}  // namespace qkv
