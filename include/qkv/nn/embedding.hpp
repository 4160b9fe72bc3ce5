// A vector for each id: tokens and positions on their way in.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "qkv/export.h"
#include "qkv/nn/module.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

/// Row ids[i] of `table` [rows, width] for each i → [ids, width], as torch.nn.functional.embedding.
/// Throws Error(out_of_range), naming the id and its place, for one that is not a row.
template <class T>
[[nodiscard]] QKV_EXPORT BasicTensor<T> embedding(std::span<const std::int64_t> ids, const BasicTensor<T>& table,
                                                  const Runtime& runtime = Runtime::serial());

/// Adds row i of d_y [ids, width] to row ids[i] of the table's gradient, in the order of the ids.
/// Throws as embedding, and Error(shape_mismatch) unless d_y has a row for each id.
template <class T>
QKV_EXPORT void embedding_backward(std::span<const std::int64_t> ids, const BasicTensor<T>& d_y, Parameter<T>& table,
                                   const Runtime& runtime = Runtime::serial());

/// torch.nn.Embedding: weight [rows, width].
template <class T>
class BasicEmbedding {
public:
    /// Draws the weight as PyTorch initialises it: standard normal. Throws Error(invalid_argument) unless both sizes
    /// are positive.
    BasicEmbedding(std::int64_t rows, std::int64_t width, Generator& generator);

    /// ids → [ids, width].
    [[nodiscard]] BasicTensor<T> forward(std::span<const std::int64_t> ids,
                                         const Runtime& runtime = Runtime::serial()) const {
        return embedding(ids, weight_.value, runtime);
    }
    /// Adds d_y [ids, width] to the gradients of the rows that forward gave for these ids.
    void backward(std::span<const std::int64_t> ids, const BasicTensor<T>& d_y,
                  const Runtime& runtime = Runtime::serial()) {
        embedding_backward(ids, d_y, weight_, runtime);
    }

    void visit_parameters(const std::string& prefix, const typename BasicModule<T>::Visitor& visit) {
        visit(prefix + ".weight", weight_);
    }

    [[nodiscard]] const BasicTensor<T>& weight() const noexcept { return weight_.value; }
    [[nodiscard]] Parameter<T>& weight_parameter() noexcept { return weight_; }

private:
    Parameter<T> weight_;  // [rows, width]
};

using Embedding = BasicEmbedding<float>;

extern template class BasicEmbedding<float>;
extern template class BasicEmbedding<double>;

}  // namespace nn QKV_EXPORT
}  // namespace qkv
