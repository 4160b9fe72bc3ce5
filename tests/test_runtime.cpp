#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "qkv/error.hpp"
#include "qkv/runtime.hpp"

namespace qkv {
namespace {

/// How often each of `tasks` tasks ran.
std::vector<int> count_tasks(const Runtime& runtime, std::int64_t tasks) {
    std::vector<std::atomic<int>> ran(static_cast<std::size_t>(tasks));
    runtime.parallel_for(tasks, [&](std::int64_t task) { ++ran[static_cast<std::size_t>(task)]; });
    return {ran.begin(), ran.end()};
}

/// Two tasks, each waiting for the other: only two threads can end this.
void meet(const Runtime& runtime) {
    std::atomic<int> waiting{0};
    runtime.parallel_for(2, [&](std::int64_t) {
        ++waiting;
        while (waiting < 2) {
            std::this_thread::yield();
        }
    });
}

TEST(Runtime, RunsEveryTaskOnce) {
    for (const std::int64_t threads : {1, 2, 5}) {
        const Runtime runtime(threads);
        EXPECT_EQ(runtime.threads(), threads);
        for (const std::int64_t tasks : {0, 1, 2, 100}) {
            EXPECT_EQ(count_tasks(runtime, tasks), std::vector<int>(static_cast<std::size_t>(tasks), 1));
        }
    }
}

TEST(Runtime, HelpersReallyHelp) {
    const Runtime runtime(2);
    meet(runtime);
}

TEST(Runtime, CallsMayMeetAndNest) {
    const Runtime runtime(3);
    std::atomic<int> ran{0};
    std::vector<std::thread> callers;
    callers.reserve(4);
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int round = 0; round < 50; ++round) {
                runtime.parallel_for(3, [&](std::int64_t) { runtime.parallel_for(2, [&](std::int64_t) { ++ran; }); });
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    EXPECT_EQ(ran, 4 * 50 * 3 * 2);
}

TEST(Runtime, PassesOnWhatATaskThrows) {
    for (const std::int64_t threads : {1, 3}) {
        const Runtime runtime(threads);
        std::atomic<int> ran{0};
        const auto body = [&](std::int64_t task) {
            ++ran;
            if (task == 1) {
                throw std::runtime_error("task 1");
            }
        };
        EXPECT_THROW(runtime.parallel_for(4, body), std::runtime_error);
        EXPECT_EQ(ran, 4);
        EXPECT_EQ(count_tasks(runtime, 4), std::vector<int>(4, 1));
    }
}

TEST(Runtime, UsesTheCallersParallelFor) {
    std::int64_t asked = 0;
    const Runtime runtime(7, [&](std::int64_t tasks, const std::function<void(std::int64_t)>& body) {
        asked = tasks;
        for (std::int64_t task = tasks; task-- > 0;) {
            body(task);
        }
    });
    EXPECT_EQ(count_tasks(runtime, 5), std::vector<int>(5, 1));
    EXPECT_EQ(asked, 5);
}

TEST(Runtime, RefusesBadThreadCounts) {
    EXPECT_THROW(Runtime(-1), Error);
    EXPECT_THROW(Runtime(5000), Error);
    EXPECT_THROW(Runtime(2, Runtime::ParallelFor{}), Error);
}

#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer refuses threads in a forked child
TEST(Runtime, StartsItsThreadsAnewAfterFork) {
    const Runtime runtime(3);
    (void)count_tasks(runtime, 8);
    const ::pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        ::alarm(30);  // a child that waits for threads it does not have is killed
        meet(runtime);
        ::_exit(count_tasks(runtime, 8) == std::vector<int>(8, 1) ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT_EQ(count_tasks(runtime, 8), std::vector<int>(8, 1));
}
#endif

}  // namespace
}  // namespace qkv
