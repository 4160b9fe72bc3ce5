#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "c_api/boundary.hpp"
#include "c_api/handles.hpp"

namespace qkv::c_api {

namespace {

/// One parallel_for on its way through C: exceptions wait here, and it is noted which tasks ran.
struct Relay {
    const std::function<void(std::int64_t)>& body;
    std::int64_t tasks;
    std::vector<std::atomic<bool>> ran = std::vector<std::atomic<bool>>(static_cast<std::size_t>(tasks));
    std::atomic<std::int64_t> done = 0;
    std::atomic<bool> stray = false;
    std::mutex mutex = {};
    std::exception_ptr error = {};

    void run(std::int64_t task) noexcept {
        if (task < 0 || task >= tasks || ran[static_cast<std::size_t>(task)].exchange(true)) {
            stray = true;
            return;
        }
        try {
            body(task);
        } catch (...) {
            const std::scoped_lock lock(mutex);
            error = error ? error : std::current_exception();
        }
        ++done;
    }
};

extern "C" void qkv_relay_task(void* context, std::int64_t task) { static_cast<Relay*>(context)->run(task); }

void run_through_c(qkv_parallel_for parallel_for, void* user, std::int64_t tasks,
                   const std::function<void(std::int64_t)>& body) {
    Relay relay{body, tasks};
    const std::int32_t failed = parallel_for(user, tasks, &qkv_relay_task, &relay);
    if (relay.error) {
        std::rethrow_exception(relay.error);
    }
    if (failed != 0) {
        fail(ErrorCode::invalid_argument, "parallel_for returned ", failed, "; expected 0");
    }
    if (relay.stray || relay.done != tasks) {
        fail(ErrorCode::invalid_argument, "parallel_for ran ", relay.done.load(), " tasks",
             relay.stray ? " and some twice or that do not exist" : "", "; expected each of ", tasks, " once");
    }
}

qkv_runtime* make_runtime(const qkv_runtime_options& options) {
    check_device(options.device, options.device_id, "runtime");
    if (options.stream != nullptr) {
        fail(ErrorCode::unsupported, "stream is given; expected NULL, the CPU has no streams");
    }
    if (options.parallel_for == nullptr) {
        return new qkv_runtime{Runtime(options.threads)};
    }
    const qkv_parallel_for parallel_for = options.parallel_for;
    void* const user = options.parallel_for_user;
    return new qkv_runtime{Runtime(
        options.threads, [parallel_for, user](std::int64_t tasks, const std::function<void(std::int64_t)>& body) {
            run_through_c(parallel_for, user, tasks, body);
        })};
}

}  // namespace

}  // namespace qkv::c_api

using namespace qkv::c_api;

extern "C" {

qkv_status qkv_runtime_create(const qkv_runtime_options* options, qkv_runtime** runtime) {
    return create(runtime, "runtime", [&] { return make_runtime(read_struct(options, "options")); });
}

void qkv_runtime_destroy(qkv_runtime* runtime) { delete runtime; }

int64_t qkv_runtime_threads(const qkv_runtime* runtime) { return runtime == nullptr ? 1 : runtime->runtime.threads(); }

}  // extern "C"
