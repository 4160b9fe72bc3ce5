// Backward (Dao 2023, algorithm 2, cut so that every sum has one order). With P = softmax(S), Z = dropout's factors,
// dP = dO Vᵀ and delta = rowsum(dO ∘ O):
//
//     S = f(scale · Q Kᵀ)          P  = exp(S − lse)
//     O = (P ∘ Z) V                dV = (P ∘ Z)ᵀ dO
//                                  dS = P ∘ (Z ∘ dP − delta)       gradient of bias and ALiBi, then through f
//                                  dQ = scale · dS K               dK = scale · dSᵀ Q
//
//     statistics     per row: lse with the sink, and delta
//     panels         five products: dQ summed over keys, dK and dV over queries, both in order (backward_panel.hpp)
//     bias pass      an item owns a tile of dbias and walks over what it is repeated along
#pragma once

#include "attention/plan.hpp"

namespace qkv::detail {

struct BackwardCall {
    Problem problem;
    ConstTensorView d_out;
    AttentionSaved saved;
    AttentionGradients gradients;
};

[[nodiscard]] Plan plan_backward(const BackwardCall& call, const Runtime& runtime);
void run_backward(const BackwardCall& call, const Plan& plan, const Runtime& runtime);

}  // namespace qkv::detail
