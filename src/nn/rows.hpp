// How rows of numbers are shared among threads outside attention and products.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/layers.hpp"
#include "qkv/runtime.hpp"
#include "qkv/tensor.hpp"

namespace qkv::nn {

/// How many rows of `width` elements make a task: the same for any number of threads.
[[nodiscard]] inline std::int64_t rows_per_task(std::int64_t width) {
    constexpr std::int64_t kElements = 16384;
    return std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, width));
}

/// body(begin, end) over runs of [0, rows), on the runtime's threads.
template <class Body>
void for_runs(const Runtime& runtime, std::int64_t rows, std::int64_t width, const Body& body) {
    const std::int64_t run = rows_per_task(width);
    runtime.parallel_for((rows + run - 1) / run,
                         [&](std::int64_t task) { body(task * run, std::min(rows, (task + 1) * run)); });
}

/// a += b, elementwise.
template <class T>
void add_to(BasicTensor<T>& a, const BasicTensor<T>& b, const Runtime& runtime) {
    const auto add = kernels::layers<T>(runtime.instruction_set()).add;
    for_runs(runtime, a.numel(), 1,
             [&](std::int64_t begin, std::int64_t end) { add(a.data() + begin, b.data() + begin, end - begin); });
}

}  // namespace qkv::nn
