// How a call is cut into items of work, and what memory it needs. However it is cut, results are the same.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <span>

#include "attention/problem.hpp"
#include "attention/workspace.hpp"
#include "core/float_environment.hpp"

namespace qkv::detail {

/// A tile of queries of one sequence.
struct TokenTile {
    Sequence sequence;
    std::int64_t begin = 0;
    std::int64_t count = 0;  // 0: this number holds no tile
};

/// How many numbers locate_tile understands: at least the tiles of all sequences, and few more.
/// `tile` is their size, a multiple of kQueryTile or kKeyTile.
[[nodiscard]] std::int64_t tile_count(const Problem& problem, std::int64_t tile = kQueryTile);
[[nodiscard]] TokenTile locate_tile(const Problem& problem, std::int64_t number, std::int64_t tile = kQueryTile);
/// The number of the tile of the default size that holds a token of a sequence.
[[nodiscard]] std::int64_t tile_number(const Problem& problem, std::int64_t sequence, std::int64_t token);

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

/// Row tiles that one task takes on together: up to `tokens` queries of up to `heads` heads that share keys, queries
/// first, so that every tile of keys, once packed, serves all of them. Less than all heads go with one tile of queries.
struct RowCut {
    std::int64_t tokens = kQueryTile;
    std::int64_t heads = 1;
    bool stacked = false;  // heads of one query each are rows of one tile

    [[nodiscard]] std::int64_t row_tiles() const {
        return stacked ? tiles_of(heads, kQueryTile) : tokens / kQueryTile * heads;
    }
    /// Pieces that the heads of a group are cut into.
    [[nodiscard]] std::int64_t head_pieces(const Problem& problem) const { return tiles_of(problem.group, heads); }
};

/// Enough rows to make the packing of keys cheap, few enough to stay in a core's own cache and, halved until
/// enough(cut) says so, to give every thread some items. No bit of a result depends on it.
template <class Enough>
[[nodiscard]] RowCut row_cut(const Problem& problem, std::int64_t numbers_per_row, const Enough& enough) {
    constexpr std::int64_t kMostTiles = 16;
    constexpr std::int64_t kCache = 1 << 20;
    const std::int64_t tile_bytes = kQueryTile * size_of(problem.compute) * numbers_per_row;
    const std::int64_t most = std::clamp<std::int64_t>(kCache / tile_bytes, 1, kMostTiles);
    RowCut cut;
    cut.heads = std::clamp<std::int64_t>(problem.group, 1, most);  // no heads: no items
    const std::int64_t longest = std::max<std::int64_t>(1, tiles_of(problem.queries, kQueryTile));
    cut.tokens = kQueryTile * std::clamp<std::int64_t>(most / cut.heads, 1, longest);
    while (cut.row_tiles() > 1 && !enough(cut)) {
        if (cut.tokens > kQueryTile) {
            cut.tokens = cut.tokens / kQueryTile / 2 * kQueryTile;
        } else {
            cut.heads = (cut.heads + 1) / 2;
        }
    }
    return cut;
}

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

/// Ascending: an item is taken only when all before it have been.
enum class ItemOrder : std::uint8_t { any, ascending };

/// Items of work, shared out among tasks. Of many items each task has one piece and takes it from its end, and who is
/// done helps the next: two threads write different cache lines, heads of one token lying side by side, and meet the
/// tokens that they wrote before. Few items are one piece that all take from the end: with a causal mask the last
/// queries have the most keys, and short items fill up the finish.
class WorkShares {
public:
    WorkShares(std::int64_t items, std::int64_t tasks) noexcept
        : items_(items), count_(items < kManyPerTask * tasks ? 1 : std::clamp<std::int64_t>(tasks, 1, kMost)) {
        for (std::int64_t share = 0; share < count_; ++share) {
            left_[static_cast<std::size_t>(share)].store(begin_of(share + 1), std::memory_order_relaxed);
        }
    }

    /// work(item) for what is left, the task's own share first.
    template <class Work>
    void work_through(std::int64_t task, const Work& work) {
        for (std::int64_t turn = 0; turn < count_; ++turn) {
            const std::int64_t share = (task + turn) % count_;
            std::atomic<std::int64_t>& left = left_[static_cast<std::size_t>(share)];
            const std::int64_t begin = begin_of(share);
            for (std::int64_t item = --left; item >= begin; item = --left) {
                work(item);
            }
        }
    }

private:
    static constexpr std::int64_t kMost = 64;
    static constexpr std::int64_t kManyPerTask = 16;  // then one more or less at the finish is 3 %

    [[nodiscard]] std::int64_t begin_of(std::int64_t share) const noexcept {
        return items_ / count_ * share + std::min(share, items_ % count_);
    }

    std::int64_t items_;
    std::int64_t count_;
    std::array<std::atomic<std::int64_t>, kMost> left_;  // of each share, up to where nobody has taken it
};

/// Runs work(scratch, item) for every item of [0, items). `Scratch(setup, carver)` is made once per task in its part
/// of the workspace. Everything runs under the default floating-point modes.
template <class Scratch, class Setup, class Work>
void run_items(const Setup& setup, const Plan& plan, const Workspace& workspace, const Runtime& runtime,
               std::int64_t items, const Work& work, ItemOrder order = ItemOrder::any) {
    const bool ascending = order == ItemOrder::ascending;
    WorkShares shares(items, ascending ? 1 : plan.tasks);
    const auto body = [&](std::int64_t task) {
        const FloatEnvironment modes;
        const kernels::Entered entered(setup.kernels);
        Carver carver = workspace.task(task);
        Scratch scratch(setup, carver);
        shares.work_through(task, [&](std::int64_t item) { work(scratch, ascending ? items - 1 - item : item); });
    };
    // One captured reference fits into std::function: no allocation.
    runtime.parallel_for(plan.tasks, [&body](std::int64_t task) { body(task); });
}

}  // namespace qkv::detail
