// Attention problems in files: what tests/torch/attention_problems.py writes, for goldens and the live comparison.
//
// One problem after another, little-endian as the machine is: 16 int64 (Header in the .cpp), then float64: scale,
// softcap, dropout p; q, k, v, d_out; and allowed, bias, sinks, keep where the header announces them. All values are
// exact in the problem's type.
#pragma once

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "qkv/types.hpp"

namespace support {

/// Results by name: out, lse, dq, dk, dv, and dbias and dsinks where there is a bias and sinks.
struct Answers {
    qkv::DType dtype = qkv::DType::f32;
    std::vector<std::pair<std::string, std::vector<double>>> tensors;
};

/// Reads the next problem and runs attention forward and backward on it. No tensors at the end of the input.
[[nodiscard]] Answers answer_problem(std::FILE* input);

/// `count` float64. Throws when the input ends before them.
[[nodiscard]] std::vector<double> take_from(std::FILE* input, std::int64_t count);

}  // namespace support
