// Forward: one tile of queries walks over the keys that its mask leaves, with a running softmax (Dao 2023, algorithm
// 1).
#pragma once

#include "attention/plan.hpp"

namespace qkv::detail {

struct ForwardCall {
    Problem problem;
    TensorView out;
    AttentionExtras extras;
};

[[nodiscard]] Plan plan_forward(const ForwardCall& call, const Runtime& runtime);
void run_forward(const ForwardCall& call, const Plan& plan, const Runtime& runtime);

}  // namespace qkv::detail
