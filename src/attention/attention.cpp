// The public functions: validate, plan, run.
#include "qkv/attention.hpp"

#include "attention/backward.hpp"
#include "attention/decode.hpp"
#include "attention/forward.hpp"
#include "attention/validate.hpp"

namespace qkv {

namespace {

detail::ForwardCall forward_call(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                                 const TensorView& out, const AttentionOptions& options,
                                 const AttentionExtras& extras) {
    detail::ForwardCall call{detail::validate_problem(q, k, v, options), out, extras};
    detail::validate_outputs(call.problem, out, extras);
    return call;
}

detail::ForwardCall cache_call(const ConstTensorView& q, const KvCache& cache, const CacheBatch& batch,
                               const TensorView& out, const AttentionOptions& options, const AttentionExtras& extras) {
    detail::ForwardCall call{detail::validate_cache_problem(q, cache.storage(), batch, options), out, extras};
    detail::validate_outputs(call.problem, out, extras);
    return call;
}

detail::BackwardCall backward_call(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                                   const ConstTensorView& d_out, const AttentionSaved& saved,
                                   const AttentionGradients& gradients, const AttentionOptions& options) {
    detail::BackwardCall call{detail::validate_problem(q, k, v, options), d_out, saved, gradients};
    detail::validate_gradients(call.problem, d_out, saved, gradients);
    return call;
}

}  // namespace

void attention(ConstTensorView q, ConstTensorView k, ConstTensorView v, TensorView out, const AttentionOptions& options,
               const AttentionExtras& extras, const Runtime& runtime) {
    const detail::ForwardCall call = forward_call(q, k, v, out, options, extras);
    run_forward(call, plan_forward(call, runtime), runtime);
}

std::size_t attention_workspace_size(ConstTensorView q, ConstTensorView k, ConstTensorView v, TensorView out,
                                     const AttentionOptions& options, const AttentionExtras& extras,
                                     const Runtime& runtime) {
    return plan_forward(forward_call(q, k, v, out, options, extras), runtime).workspace_bytes();
}

void attention(ConstTensorView q, const KvCache& cache, const CacheBatch& batch, TensorView out,
               const AttentionOptions& options, const AttentionExtras& extras, const Runtime& runtime) {
    const detail::ForwardCall call = cache_call(q, cache, batch, out, options, extras);
    run_decode(call, plan_decode(call, runtime), runtime);
}

std::size_t attention_workspace_size(ConstTensorView q, const KvCache& cache, const CacheBatch& batch, TensorView out,
                                     const AttentionOptions& options, const AttentionExtras& extras,
                                     const Runtime& runtime) {
    return plan_decode(cache_call(q, cache, batch, out, options, extras), runtime).plan.workspace_bytes();
}

void attention_backward(ConstTensorView q, ConstTensorView k, ConstTensorView v, ConstTensorView d_out,
                        const AttentionSaved& saved, const AttentionGradients& gradients,
                        const AttentionOptions& options, const Runtime& runtime) {
    const detail::BackwardCall call = backward_call(q, k, v, d_out, saved, gradients, options);
    run_backward(call, plan_backward(call, runtime), runtime);
}

std::size_t attention_backward_workspace_size(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                              ConstTensorView d_out, const AttentionSaved& saved,
                                              const AttentionGradients& gradients, const AttentionOptions& options,
                                              const Runtime& runtime) {
    return plan_backward(backward_call(q, k, v, d_out, saved, gradients, options), runtime).workspace_bytes();
}

}  // namespace qkv
