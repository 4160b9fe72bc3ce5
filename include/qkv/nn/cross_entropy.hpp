// How surprised a model is by what came next.
#pragma once

#include <cstdint>
#include <span>

#include "qkv/export.h"
#include "qkv/runtime.hpp"
#include "qkv/tensor.hpp"

namespace qkv {
namespace nn QKV_EXPORT {

struct CrossEntropyOptions {
    std::int64_t ignore_index = -100;  ///< a target that counts for nothing, as in PyTorch
    /// The gradient is that of scale · loss: 1/n for each of n batches whose gradients add up.
    double scale = 1.0;
};

template <class T>
struct CrossEntropy {
    double loss = 0;          ///< the mean, unscaled
    BasicTensor<T> d_logits;  ///< shaped as the logits
};

/// The mean of −ln softmax(logits)[target] over the targets that are not ignored, as
/// torch.nn.functional.cross_entropy: each row's maximum is subtracted first. NaN when all are ignored, as there.
/// logits [..., classes], one target per row, in row-major order. Throws Error(shape_mismatch) for another number of
/// targets, Error(out_of_range), naming the target and its place, for one that is no class.
template <class T>
[[nodiscard]] QKV_EXPORT double cross_entropy(const BasicTensor<T>& logits, std::span<const std::int64_t> targets,
                                              const CrossEntropyOptions& options = {},
                                              const Runtime& runtime = Runtime::serial());

/// The same, and the gradient (softmax(logits) − one-hot target) · scale / targets, written over the logits: pass them
/// with std::move and there is never more than one tensor of that size. Rows of ignored targets get zeros.
template <class T>
[[nodiscard]] QKV_EXPORT CrossEntropy<T> cross_entropy_backward(BasicTensor<T> logits,
                                                                std::span<const std::int64_t> targets,
                                                                const CrossEntropyOptions& options = {},
                                                                const Runtime& runtime = Runtime::serial());

}  // namespace nn QKV_EXPORT
}  // namespace qkv
