// attention, attention_with, attention_merge and attention_merge_sinks.
#include "qkv/attention.hpp"

#include <nanobind/nanobind.h>

#include <string>

#include "arguments.hpp"
#include "bindings.hpp"
#include "define.hpp"
#include "options.hpp"
#include "runtime.hpp"

namespace qkv::python {

namespace {

/// The arrays of a forward call, read in place.
struct Inputs {
    Operand q, k, v;

    Inputs(nb::handle query, nb::handle key, nb::handle value)
        : q(read_input(query, "q")), k(read_input(key, "k")), v(read_input(value, "v")) {
        check_rank(k, q);
        check_rank(v, q);
    }

    /// [.., Tq, last]
    [[nodiscard]] Shape shape_of(std::int64_t last) const {
        const Shape4 sizes = q.view().shape;
        return last_sizes({sizes[0], sizes[1], sizes[2], last}, q.rank());
    }
    [[nodiscard]] Wanted out(nb::handle argument, nb::handle like) const {
        const nb::handle wanted = argument.is_none() ? nb::handle(Py_True) : argument;
        Wanted out(wanted, "out", shape_of(v.size(v.rank() - 1)), q.dtype(), like);
        check_rank(out.memory(), q);
        return out;
    }
};

nb::object run(const Inputs& inputs, const Wanted& out, const OptionArguments& arguments, const AttentionExtras& extras,
               const Runtime* runtime) {
    const Options options(arguments);
    const auto threads = runtime_of(runtime);
    const ConstTensorView q = inputs.q.view();
    const ConstTensorView k = inputs.k.view();
    const ConstTensorView v = inputs.v.view();
    const TensorView context = out.memory().view();
    {
        const nb::gil_scoped_release without_gil;
        attention(q, k, v, context, options.value(), extras, *threads);
    }
    return out.result();
}

nb::object attention_only(nb::handle q, nb::handle k, nb::handle v, nb::handle out, const HeldMask* mask,
                          std::optional<double> scale, double softcap, nb::handle sinks, const HeldDropout* dropout,
                          const Offsets* offsets, const Runtime* runtime) {
    const Inputs inputs(q, k, v);
    return run(inputs, inputs.out(out, q), {mask, scale, softcap, sinks, dropout, offsets}, {}, runtime);
}

ScorePoint to_score_point(const std::string& name) {
    if (name == "scaled") {
        return ScorePoint::scaled;
    }
    if (name == "capped") {
        return ScorePoint::capped;
    }
    if (name == "masked") {
        return ScorePoint::masked;
    }
    if (name == "weights") {
        return ScorePoint::weights;
    }
    raise(PyExc_ValueError, "scores_at is '", name, "'; expected 'scaled', 'capped', 'masked' or 'weights'");
}

nb::tuple attention_with(nb::handle q, nb::handle k, nb::handle v, nb::handle lse, nb::handle weights,
                         nb::handle scores, const std::string& scores_at, bool lse_counts_sinks, nb::handle out,
                         const HeldMask* mask, std::optional<double> scale, double softcap, nb::handle sinks,
                         const HeldDropout* dropout, const Offsets* offsets, const Runtime* runtime) {
    const Inputs inputs(q, k, v);
    const DType sums = sum_type(inputs.q.dtype());
    const Shape pairs = inputs.shape_of(inputs.k.size(inputs.k.rank() - 2));
    Shape rows = pairs;
    rows.pop_back();
    const Wanted context = inputs.out(out, q);
    const Wanted wanted_lse(lse, "lse", rows, sums);
    const Wanted wanted_weights(weights, "weights", pairs, sums);
    const Wanted wanted_scores(scores, "scores", pairs, sums);
    AttentionExtras extras;
    extras.lse_counts_sinks = lse_counts_sinks;
    extras.scores_at = to_score_point(scores_at);
    if (wanted_lse.given()) {
        extras.lse = wanted_lse.memory().row_view();
    }
    if (wanted_weights.given()) {
        extras.weights = wanted_weights.memory().view();
    }
    if (wanted_scores.given()) {
        extras.scores = wanted_scores.memory().view();
    }
    run(inputs, context, {mask, scale, softcap, sinks, dropout, offsets}, extras, runtime);
    return nb::make_tuple(context.result(), wanted_lse.result(), wanted_weights.result(), wanted_scores.result());
}

AttentionState state_of(const Operand& out, const Operand& lse) { return {out.view(), lse.row_view()}; }

void merge(nb::handle out, nb::handle lse, nb::handle part_out, nb::handle part_lse) {
    const Operand state_out(out, "out", Operand::Access::write);
    const Operand state_lse(lse, "lse", Operand::Access::write);
    const Operand other_out(part_out, "part_out");
    const Operand other_lse(part_lse, "part_lse");
    attention_merge(state_of(state_out, state_lse), other_out.view(), other_lse.row_view());
}

void merge_sinks(nb::handle out, nb::handle lse, nb::handle sinks) {
    const Operand state_out(out, "out", Operand::Access::write);
    const Operand state_lse(lse, "lse", Operand::Access::write);
    const Operand read_sinks(sinks, "sinks");
    attention_merge_sinks(state_of(state_out, state_lse), read_sinks.head_view());
}

}  // namespace

void bind_attention(nb::module_& module) {
    define(
        module, "attention", &attention_only, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::kw_only(),
        nb::arg("out") = nb::none(), nb::arg("mask") = nb::none(), nb::arg("scale") = nb::none(),
        nb::arg("softcap") = 0.0, nb::arg("sinks") = nb::none(), nb::arg("dropout") = nb::none(),
        nb::arg("offsets") = nb::none(), nb::arg("runtime") = nb::none(),
        nb::sig(
            "def attention(q: object, k: object, v: object, *, out: object | None = None, mask: Mask | None = None, "
            "scale: float | None = None, softcap: float = 0.0, sinks: object | None = None, "
            "dropout: Dropout | None = None, offsets: Offsets | None = None, "
            "runtime: Runtime | None = None) -> typing.Any"),
        "softmax(q kᵀ · scale + mask) v.\n\n"
        "    q [B, Hq, Tq, D]   k [B, Hkv, Tk, D]   v [B, Hkv, Tk, Dv]   ->   [B, Hq, Tq, Dv]\n\n"
        "All three may leave out B, or B and H. One type: float32, bfloat16, float16 or float64. Any array with DLPack "
        "or\n"
        "the buffer protocol, strided at will as long as the last stride is 1; nothing is copied. Query head h reads\n"
        "key/value head h // (Hq // Hkv).\n\n"
        "out: array to fill and return, in place of a new one. mask: a Mask. scale: default 1/√D. softcap: c > 0 "
        "turns\n"
        "scores into c·tanh(score / c). sinks: float32 [Hq], one more score per head without a value. dropout, "
        "offsets,\n"
        "runtime: see their classes.\n\n"
        "A row that may attend to nothing gives 0. What is masked is never read into a result: a NaN there does not "
        "show.\n"
        "Raises ValueError, TypeError or BufferError naming the argument before anything is written.\n\n"
        ">>> import numpy, qkv\n"
        ">>> x = numpy.eye(3, dtype=numpy.float32)\n"
        ">>> qkv.attention(x, x, x, mask=qkv.Mask.causal(\"top_left\"), scale=0.0).round(2).tolist()[1]\n"
        "[0.5, 0.5, 0.0]");
    define(module, "attention_with", &attention_with, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::kw_only(),
           nb::arg("lse") = nb::none(), nb::arg("weights") = nb::none(), nb::arg("scores") = nb::none(),
           nb::arg("scores_at") = "masked", nb::arg("lse_counts_sinks") = true, nb::arg("out") = nb::none(),
           nb::arg("mask") = nb::none(), nb::arg("scale") = nb::none(), nb::arg("softcap") = 0.0,
           nb::arg("sinks") = nb::none(), nb::arg("dropout") = nb::none(), nb::arg("offsets") = nb::none(),
           nb::arg("runtime") = nb::none(),
           nb::sig("def attention_with(q: object, k: object, v: object, *, lse: object = None, weights: object = None, "
                   "scores: object = None, scores_at: str = 'masked', lse_counts_sinks: bool = True, "
                   "out: object | None = None, mask: Mask | None = None, scale: float | None = None, "
                   "softcap: float = 0.0, sinks: object | None = None, dropout: Dropout | None = None, "
                   "offsets: Offsets | None = None, runtime: Runtime | None = None) -> tuple[typing.Any, ...]"),
           "What qkv.attention_with names: (context, lse, weights, scores).");
    define(module, "attention_merge", &merge, nb::arg("out"), nb::arg("lse"), nb::arg("part_out"), nb::arg("part_lse"),
           nb::sig("def attention_merge(out: object, lse: object, part_out: object, part_lse: object) -> None"),
           "(out, lse) <- (out, lse) and (part_out, part_lse) together, in place, as if one call had seen the keys of\n"
           "both. float32 or float64, [B, Hq, Tq, Dv] and [B, Hq, Tq]; lse without sinks.");
    define(module, "attention_merge_sinks", &merge_sinks, nb::arg("out"), nb::arg("lse"), nb::arg("sinks"),
           nb::sig("def attention_merge_sinks(out: object, lse: object, sinks: object) -> None"),
           "The sinks [Hq], once, after the last merge, in place.");
}

}  // namespace qkv::python
