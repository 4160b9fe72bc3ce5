// The names that a Gpt's parameters have elsewhere.
#pragma once

#include "qkv/tensor.hpp"

namespace qkv::nn {

/// A state_dict of Hugging Face's GPT2LMHeadModel in the names of BasicGpt, its [in, out] matrices turned to [out, in]
/// and its fused query-key-value layer split; others pass unchanged. Without lm_head.weight the head is the token
/// table, as it is there. Names that GPT-2 has not stay as they are. Throws Error(shape_mismatch), naming the tensor,
/// for a shape that cannot be turned or split.
template <class T>
[[nodiscard]] StateDict<T> from_gpt2(StateDict<T> state);

/// For tied weights: without out_head.weight, which must equal tok_emb.weight to the bit where both are there and
/// stands for it where that is missing. Throws Error(invalid_argument) where they differ.
template <class T>
[[nodiscard]] StateDict<T> with_one_table(StateDict<T> state);

}  // namespace qkv::nn
