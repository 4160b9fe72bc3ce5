// What a module keeps from forward to backward: shared by copies of the module, so never changed once it is kept.
#pragma once

#include <memory>
#include <utility>

#include "core/check.hpp"
#include "qkv/tensor.hpp"

namespace qkv::nn {

/// Throws Error(invalid_argument) unless forward remembered something: backward needs a forward in training before it,
/// of a module that is not const.
inline void check_remembered(bool remembered) {
    if (!remembered) {
        fail(ErrorCode::invalid_argument,
             "backward without a forward to go back over; call train() and forward() on this module first");
    }
}

/// Runs a forward, and in training keeps what it wrote down.
template <class T, class Memory, class Compute>
[[nodiscard]] BasicTensor<T> remembering(bool training, std::shared_ptr<const Memory>& kept, const Compute& compute) {
    auto memory = std::make_shared<Memory>();
    BasicTensor<T> output = compute(*memory);
    if (training) {
        kept = std::move(memory);
    }
    return output;
}

/// What forward left; throws as check_remembered.
template <class Memory>
[[nodiscard]] const Memory& recall(const std::shared_ptr<const Memory>& memory) {
    check_remembered(memory != nullptr);
    return *memory;
}

/// Throws Error(shape_mismatch) unless a gradient of the output is shaped as the output was.
template <class T>
void check_gradient(const BasicTensor<T>& d_output, const Shape& expected) {
    if (d_output.shape() != expected) {
        fail(ErrorCode::shape_mismatch, "the gradient of the output has shape ", to_string(d_output.shape()),
             "; expected ", to_string(expected));
    }
}

}  // namespace qkv::nn
