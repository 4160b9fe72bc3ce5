// Merging results over different keys.
#include "attention/state.hpp"

#include "attention/validate_views.hpp"
#include "core/float_environment.hpp"
#include "qkv/attention.hpp"

namespace qkv {

namespace detail {

namespace {

void check_state(const AttentionState& state) {
    check_view(state.out, "state.out");
    check_dtype(state.out, "state.out", {DType::f32, DType::f64});
    check_unit_stride(state.out, "state.out");
    check_view(state.lse, "state.lse");
    check_dtype(state.lse, "state.lse", {state.out.dtype});
    check_shape(state.lse, "state.lse", "[B, Hq, Tq, 1]", {state.out.size(0), state.out.size(1), state.out.size(2), 1});
}

/// Calls visit(batch, head, query) for every row of the state.
template <class Visit>
void for_each_row(const AttentionState& state, const Visit& visit) {
    for (std::int64_t b = 0; b < state.out.size(0); ++b) {
        for (std::int64_t h = 0; h < state.out.size(1); ++h) {
            for (std::int64_t i = 0; i < state.out.size(2); ++i) {
                visit(b, h, i);
            }
        }
    }
}

template <class A>
void merge_rows(const AttentionState& state, const ConstTensorView& part_out, const ConstTensorView& part_lse) {
    for_each_row(state, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
        A* lse = reinterpret_cast<A*>(state.lse.at(b, h, i, 0));
        A* out = reinterpret_cast<A*>(state.out.at(b, h, i, 0));
        const A* other = reinterpret_cast<const A*>(part_out.at(b, h, i, 0));
        const Merge<A> merge = merge_lse(*lse, *reinterpret_cast<const A*>(part_lse.at(b, h, i, 0)));
        // A side with lse −∞ has seen no key; its context is not looked at.
        if (merge.factor_b == A(0)) {
            return;
        }
        for (std::int64_t d = 0; d < state.out.size(3); ++d) {
            const A mine = merge.factor_a == A(0) ? A(0) : out[d] * merge.factor_a;
            out[d] = mine + other[d] * merge.factor_b;
        }
        *lse = merge.lse;
    });
}

template <class A>
void merge_sink_rows(const AttentionState& state, const ConstTensorView& sinks) {
    for_each_row(state, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
        A* lse = reinterpret_cast<A*>(state.lse.at(b, h, i, 0));
        A* out = reinterpret_cast<A*>(state.out.at(b, h, i, 0));
        const Merge<A> merge = merge_lse(*lse, *reinterpret_cast<const A*>(sinks.at(0, h, 0, 0)));
        for (std::int64_t d = 0; d < state.out.size(3); ++d) {
            out[d] = merge.factor_a == A(0) ? A(0) : out[d] * merge.factor_a;
        }
        *lse = merge.lse;
    });
}

}  // namespace

}  // namespace detail

void attention_merge(const AttentionState& state, ConstTensorView part_out, ConstTensorView part_lse) {
    using namespace detail;
    check_state(state);
    check_view(part_out, "part_out");
    check_dtype(part_out, "part_out", {state.out.dtype});
    check_shape(part_out, "part_out", "the shape of state.out", state.out.shape);
    check_unit_stride(part_out, "part_out");
    check_view(part_lse, "part_lse");
    check_dtype(part_lse, "part_lse", {state.out.dtype});
    check_shape(part_lse, "part_lse", "the shape of state.lse", state.lse.shape);
    const NamedView outputs[] = {named("state.out", state.out), named("state.lse", state.lse)};
    const NamedView inputs[] = {named("part_out", part_out), named("part_lse", part_lse)};
    check_overlap(outputs, inputs);
    const FloatEnvironment modes;
    state.out.dtype == DType::f64 ? merge_rows<double>(state, part_out, part_lse)
                                  : merge_rows<float>(state, part_out, part_lse);
}

void attention_merge_sinks(const AttentionState& state, ConstTensorView sinks) {
    using namespace detail;
    check_state(state);
    check_view(sinks, "sinks");
    check_dtype(sinks, "sinks", {state.out.dtype});
    check_shape(sinks, "sinks", "[1, Hq, 1, 1]", {1, state.out.size(1), 1, 1});
    const NamedView outputs[] = {named("state.out", state.out), named("state.lse", state.lse)};
    const NamedView inputs[] = {named("sinks", sinks)};
    check_overlap(outputs, inputs);
    const FloatEnvironment modes;
    state.out.dtype == DType::f64 ? merge_sink_rows<double>(state, sinks) : merge_sink_rows<float>(state, sinks);
}

}  // namespace qkv
