// How a call is cut into items of work, and what memory it needs. Items are the same for any number of threads; only
// who takes which differs.
#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "attention/problem.hpp"
#include "attention/workspace.hpp"
#include "core/float_environment.hpp"

namespace qkv::detail {

/// A tile of queries or keys of one sequence.
struct TokenTile {
    Sequence sequence;
    std::int64_t begin = 0;
    std::int64_t count = 0;  // 0: this number holds no tile
};

enum class Side : std::uint8_t { queries, keys };

/// How many numbers locate_tile understands: at least the tiles of all sequences, and few more.
/// `tile` is their size, a multiple of kQueryTile or kKeyTile.
[[nodiscard]] std::int64_t tile_count(const Problem& problem, Side side, std::int64_t tile = kQueryTile);
[[nodiscard]] TokenTile locate_tile(const Problem& problem, Side side, std::int64_t number,
                                    std::int64_t tile = kQueryTile);
static_assert(kQueryTile == kKeyTile, "one default for both sides");

/// Memory: `shared` for the call, then `per_task` for each task.
struct Plan {
    std::int64_t tasks = 1;
    std::size_t shared_bytes = 0;
    std::size_t task_bytes = 0;

    [[nodiscard]] std::size_t workspace_bytes() const;
};

/// Tasks for a call whose two products per score take 2 · (D + Dv) operations: no more than threads, than items, or
/// than work is worth waking a thread for.
[[nodiscard]] std::int64_t task_count(const Problem& problem, const Runtime& runtime, std::int64_t items);

/// The caller's workspace, or one allocated here where that is empty. Throws when the caller's is too small.
class Workspace {
public:
    Workspace(const Plan& plan, std::span<std::byte> given);

    [[nodiscard]] Carver shared() const noexcept { return Carver(block_); }
    [[nodiscard]] Carver task(std::int64_t task) const noexcept {
        return Carver(block_ + plan_.shared_bytes + static_cast<std::size_t>(task) * plan_.task_bytes);
    }

private:
    Plan plan_;
    std::unique_ptr<std::byte[]> own_;
    std::byte* block_ = nullptr;
};

/// Runs work(scratch, item) for every item of [0, items). `Scratch(setup, carver)` is made once per task in its part
/// of the workspace. Everything runs under the default floating-point modes.
template <class Scratch, class Setup, class Work>
void run_items(const Setup& setup, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
               std::int64_t items, const Work& work) {
    std::atomic<std::int64_t> next{0};
    const auto body = [&](std::int64_t task) {
        const FloatEnvironment modes;
        const kernels::Entered entered(setup.kernels);
        Carver carver = workspace.task(task);
        Scratch scratch(setup, carver);
        for (std::int64_t item = next++; item < items; item = next++) {
            work(scratch, item);
        }
    };
    // One captured reference fits into std::function: no allocation.
    runtime.parallel_for(plan.tasks, [&body](std::int64_t task) { body(task); });
}

}  // namespace qkv::detail
