#include "qkv/nn/embedding.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "nn/rows.hpp"

namespace qkv::nn {

namespace {

void check_ids(std::span<const std::int64_t> ids, std::int64_t rows) {
    for (std::size_t place = 0; place < ids.size(); ++place) {
        if (ids[place] < 0 || ids[place] >= rows) {
            fail(ErrorCode::out_of_range, "id ", ids[place], " at place ", place, "; expected 0 to ", rows - 1);
        }
    }
}

template <class T>
BasicTensor<T> drawn_table(std::int64_t rows, std::int64_t width, Generator& generator) {
    if (rows < 1 || width < 1) {
        fail(ErrorCode::invalid_argument, "an embedding of ", rows, " rows of ", width, "; expected 1 or more of each");
    }
    BasicTensor<T> table({rows, width});
    generator.normal_(table.values(), 0.0, 1.0);
    return table;
}

}  // namespace

template <class T>
BasicTensor<T> embedding(std::span<const std::int64_t> ids, const BasicTensor<T>& table, const Runtime& runtime) {
    check_ids(ids, table.size(0));
    const std::int64_t width = table.size(1);
    BasicTensor<T> rows = BasicTensor<T>::unwritten({static_cast<std::int64_t>(ids.size()), width});
    for_runs(runtime, rows.size(0), width, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            std::copy_n(table.data() + ids[static_cast<std::size_t>(i)] * width, width, rows.data() + i * width);
        }
    });
    return rows;
}

template <class T>
void embedding_backward(std::span<const std::int64_t> ids, const BasicTensor<T>& d_y, Parameter<T>& table,
                        const Runtime& runtime) {
    check_ids(ids, table.value.size(0));
    const std::int64_t width = table.value.size(1);
    if (const Shape expected{static_cast<std::int64_t>(ids.size()), width}; d_y.shape() != expected) {
        fail(ErrorCode::shape_mismatch, "embedding: the gradient has shape ", to_string(d_y.shape()), "; expected ",
             to_string(expected));
    }
    T* const gradient = table.accumulated().data();
    // Several ids may name one row, so tasks split the columns, and each adds in the order of the ids.
    constexpr std::int64_t kColumns = 32;
    runtime.parallel_for((width + kColumns - 1) / kColumns, [&](std::int64_t task) {
        const std::int64_t begin = task * kColumns;
        const std::int64_t end = std::min(width, begin + kColumns);
        for (std::size_t i = 0; i < ids.size(); ++i) {
            T* const to = gradient + ids[i] * width;
            const T* const from = d_y.data() + static_cast<std::int64_t>(i) * width;
            for (std::int64_t column = begin; column < end; ++column) {
                to[column] += from[column];
            }
        }
    });
}

template <class T>
BasicEmbedding<T>::BasicEmbedding(std::int64_t rows, std::int64_t width, Generator& generator)
    : weight_(drawn_table<T>(rows, width, generator)) {}

#define QKV_INSTANTIATE(T)                                                                                   \
    template BasicTensor<T> embedding(std::span<const std::int64_t>, const BasicTensor<T>&, const Runtime&); \
    template void embedding_backward(std::span<const std::int64_t>, const BasicTensor<T>&, Parameter<T>&,    \
                                     const Runtime&);                                                        \
    template class BasicEmbedding<T>;
QKV_INSTANTIATE(float)
QKV_INSTANTIATE(double)
#undef QKV_INSTANTIATE

}  // namespace qkv::nn
