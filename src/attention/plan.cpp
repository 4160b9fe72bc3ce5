#include "attention/plan.hpp"

#include <algorithm>
#include <new>

#include "core/check.hpp"

namespace qkv::detail {

namespace {

/// Number of the first tile of packed sequence `index`. A segment of n tokens has at most n / tile + 1 tiles, so
/// start / tile + index leaves room for all of the ones before: no table of tile counts is needed.
std::int64_t first_packed_tile(std::span<const std::int64_t> starts, std::int64_t index, std::int64_t tile) {
    return starts[static_cast<std::size_t>(index)] / tile + index;
}

}  // namespace

std::int64_t tile_count(const Problem& problem, std::int64_t tile) {
    if (problem.packed()) {
        return first_packed_tile(*problem.mask.packed_queries, problem.sequences, tile);
    }
    return checked_multiply(problem.sequences, tiles_of(problem.queries, tile), "attention: tiles of the batch");
}

TokenTile locate_tile(const Problem& problem, std::int64_t number, std::int64_t tile) {
    std::int64_t index = 0;
    std::int64_t first = 0;
    if (problem.packed()) {
        const auto starts = *problem.mask.packed_queries;
        std::int64_t past = problem.sequences;
        while (past - index > 1) {
            const std::int64_t middle = index + (past - index) / 2;
            (first_packed_tile(starts, middle, tile) <= number ? index : past) = middle;
        }
        first = first_packed_tile(starts, index, tile);
    } else {
        const std::int64_t per_sequence = tiles_of(problem.queries, tile);
        index = number / per_sequence;
        first = index * per_sequence;
    }
    TokenTile located;
    located.sequence = sequence_of(problem, index);
    const std::int64_t tokens = located.sequence.queries;
    located.begin = std::min(tokens, (number - first) * tile);
    located.count = std::min(tile, tokens - located.begin);
    return located;
}

std::int64_t tile_number(const Problem& problem, std::int64_t sequence, std::int64_t token) {
    if (problem.packed()) {
        return first_packed_tile(*problem.mask.packed_queries, sequence, kQueryTile) + token / kQueryTile;
    }
    return sequence * tiles_of(problem.queries, kQueryTile) + token / kQueryTile;
}

std::size_t Plan::workspace_bytes() const {
    return Carver::kAlignment - 1 + shared_bytes + static_cast<std::size_t>(tasks) * task_bytes;
}

std::int64_t task_count(const Problem& problem, const Runtime& runtime, std::int64_t items) {
    constexpr double kOperationsPerTask = 1e6;  // some tens of microseconds: a few times what waking a thread costs
    const double operations = 2.0 * static_cast<double>(problem.batch) * static_cast<double>(problem.heads) *
                              static_cast<double>(problem.queries) * static_cast<double>(problem.keys) *
                              static_cast<double>(problem.head_dim + problem.value_dim);
    const double worth = std::min(operations / kOperationsPerTask, static_cast<double>(runtime.threads()));
    return std::max<std::int64_t>(1, std::min({runtime.threads(), items, static_cast<std::int64_t>(worth)}));
}

Workspace::Workspace(const Plan& plan, std::span<std::byte> given) : plan_(plan) {
    const std::size_t bytes = plan.workspace_bytes();
    std::byte* block = given.data();
    if (given.empty()) {
        own_.reset(new (std::nothrow) std::byte[bytes]);
        if (!own_) {
            fail(ErrorCode::out_of_memory, "attention: no memory for a workspace of ", bytes, " bytes");
        }
        block = own_.get();
    } else if (given.size() < bytes) {
        fail(ErrorCode::invalid_argument, "workspace has ", given.size(), " bytes; expected at least ", bytes);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(block);
    block_ = block + (Carver::kAlignment - address % Carver::kAlignment) % Carver::kAlignment;
}

}  // namespace qkv::detail
