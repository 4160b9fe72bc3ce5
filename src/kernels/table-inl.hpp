// The table of the instruction set that is being compiled for.
#pragma once

#include "kernels/multiply-inl.hpp"
#include "kernels/rows-inl.hpp"
#include "kernels/softmax-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace qkv::kernels::HWY_NAMESPACE {

template <class A>
constexpr Kernels<A> MakeTable() {
    return {.load = Load<A>,
            .store = Store<A>,
            .transpose = Transpose<A>,
            .multiply = Multiply<A>,
            .multiply_add = MultiplyAdd<A>,
            .cap = Cap<A>,
            .add = Add<A>,
            .slope = Slope<A>,
            .mask = Mask<A>,
            .soften = Soften<A>,
            .weigh = Weigh<A>,
            .score_gradients = ScoreGradients<A>,
            .exp = ExpOfOne<A>};
}

}  // namespace qkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
