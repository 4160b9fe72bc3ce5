// Dropout (Srivastava et al. 2014, in its inverted form), drawn as PyTorch draws it.
#pragma once

#include <cstdint>
#include <vector>

#include "nn/attention_steps.hpp"
#include "qkv/random.hpp"
#include "qkv/runtime.hpp"
#include "qkv/tensor.hpp"

namespace qkv::nn {

/// Which of `count` elements stay, a byte each in memory order; empty where dropout is idle. Throws
/// Error(invalid_argument) where it is not and there is no generator.
[[nodiscard]] KeepBytes drawn_keep(std::int64_t count, const StepDropout& dropout, Generator* generator);

/// x in place: 0 where not kept, times 1/(1−p) where kept; unchanged where `keep` is empty. The way back is the same.
template <class T>
void drop(BasicTensor<T>& x, const KeepBytes& keep, double p, const Runtime& runtime);
/// The same of x as it is, in `room`; x itself where `keep` is empty.
template <class T>
[[nodiscard]] const BasicTensor<T>& dropped(const BasicTensor<T>& x, const KeepBytes& keep, double p,
                                            BasicTensor<T>& room, const Runtime& runtime);

}  // namespace qkv::nn
