#include "attention/overlap.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

#include "core/check.hpp"

namespace qkv::detail {

namespace {

/// A view as runs of bytes: `run` bytes at low + Σ index[d] · step[d], steps rising, dimensions of size 1 and repeated
/// ones left out.
struct Runs {
    std::uintptr_t low = 0;
    std::int64_t run = 0;
    std::size_t rank = 0;
    std::array<std::int64_t, 4> count{};
    std::array<std::int64_t, 4> step{};
    bool repeats = false;  // some dimension has stride 0

    /// Every step reaches past all that the smaller ones cover: no two runs overlap, and counting through the
    /// dimensions visits them in rising order.
    [[nodiscard]] bool nested() const {
        std::int64_t covered = run;
        for (std::size_t d = 0; d < rank; ++d) {
            if (step[d] < covered) {
                return false;
            }
            covered += step[d] * (count[d] - 1);
        }
        return true;
    }
};

Runs runs_of(const ConstTensorView& view) {
    const std::int64_t element = size_of(view.dtype);
    Runs runs;
    runs.low = reinterpret_cast<std::uintptr_t>(view.data);
    runs.run = element;
    using Dimension = std::pair<std::int64_t, std::int64_t>;  // step, count
    std::array<Dimension, 4> dims;
    dims.fill({std::numeric_limits<std::int64_t>::max(), 0});  // unused ones sort to the end
    for (std::size_t d = 0; d < 4; ++d) {
        const std::int64_t step = view.strides[d] * element;
        if (view.shape[d] == 1) {
            continue;
        }
        if (step == 0) {
            runs.repeats = true;
            continue;
        }
        if (step < 0) {
            runs.low += static_cast<std::uintptr_t>(step * (view.shape[d] - 1));
        }
        dims[runs.rank++] = {std::abs(step), view.shape[d]};
    }
    std::ranges::sort(dims);
    std::size_t rank = 0;
    for (std::size_t d = 0; d < runs.rank; ++d) {
        if (rank == 0 && dims[d].first == runs.run) {
            runs.run *= dims[d].second;  // rows without gaps are one run
            continue;
        }
        runs.step[rank] = dims[d].first;
        runs.count[rank++] = dims[d].second;
    }
    runs.rank = rank;
    return runs;
}

/// Walks the runs of a nested view in rising order.
class Walk {
public:
    explicit Walk(const Runs& runs) : runs_(runs) {}
    [[nodiscard]] bool ended() const noexcept { return ended_; }
    [[nodiscard]] std::uintptr_t begin() const noexcept { return runs_.low + static_cast<std::uintptr_t>(offset_); }
    [[nodiscard]] std::uintptr_t end() const noexcept { return begin() + static_cast<std::uintptr_t>(runs_.run); }
    void advance() noexcept {
        for (std::size_t d = 0; d < runs_.rank; ++d) {
            offset_ += runs_.step[d];
            if (++index_[d] < runs_.count[d]) {
                return;
            }
            offset_ -= runs_.step[d] * runs_.count[d];
            index_[d] = 0;
        }
        ended_ = true;
    }

private:
    const Runs& runs_;
    std::array<std::int64_t, 4> index_{};
    std::int64_t offset_ = 0;
    bool ended_ = false;
};

}  // namespace

ByteRange byte_range(const ConstTensorView& view, const char* name) {
    if (view.empty()) {
        return {};
    }
    std::int64_t below = 0;
    std::int64_t above = size_of(view.dtype);
    for (std::size_t d = 0; d < 4; ++d) {
        const std::int64_t bytes = checked_multiply(view.strides[d], size_of(view.dtype), name);
        const std::int64_t reach = checked_multiply(view.shape[d] - 1, bytes, name);
        std::int64_t& side = reach < 0 ? below : above;
        if (__builtin_add_overflow(side, reach, &side)) {
            fail(ErrorCode::out_of_range, name, ": shape ", to_string(view),
                 " with its strides spans more than 2^63 bytes");
        }
    }
    const auto address = reinterpret_cast<std::uintptr_t>(view.data);
    ByteRange range;
    const auto reach_below = static_cast<std::uintptr_t>(-below);
    if (reach_below > address || __builtin_add_overflow(address, static_cast<std::uintptr_t>(above), &range.end)) {
        fail(ErrorCode::out_of_range, name, ": shape ", to_string(view), " with its strides leaves the address space");
    }
    range.begin = address - reach_below;
    return range;
}

bool overlaps_itself(const ConstTensorView& view) {
    if (view.empty() || view.strides == contiguous_strides(view.shape)) {
        return false;
    }
    const Runs runs = runs_of(view);
    return runs.repeats || !runs.nested();
}

bool overlap(const ConstTensorView& a, const ByteRange& range_a, const ConstTensorView& b, const ByteRange& range_b) {
    if (a.empty() || b.empty()) {
        return false;
    }
    if (range_a.end <= range_b.begin || range_b.end <= range_a.begin) {
        return false;
    }
    const Runs runs_a = runs_of(a);
    const Runs runs_b = runs_of(b);
    if (!runs_a.nested() || !runs_b.nested()) {
        return true;
    }
    Walk walk_a(runs_a);
    Walk walk_b(runs_b);
    while (!walk_a.ended() && !walk_b.ended()) {
        if (walk_a.end() <= walk_b.begin()) {
            walk_a.advance();
        } else if (walk_b.end() <= walk_a.begin()) {
            walk_b.advance();
        } else {
            return true;
        }
    }
    return false;
}

}  // namespace qkv::detail
