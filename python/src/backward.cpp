// attention_backward.
#include <nanobind/nanobind.h>

#include "arguments.hpp"
#include "bindings.hpp"
#include "define.hpp"
#include "options.hpp"
#include "qkv/attention.hpp"
#include "runtime.hpp"

namespace qkv::python {

namespace {

Shape shape_of(const Operand& operand) {
    Shape shape;
    for (int dim = 0; dim < operand.rank(); ++dim) {
        shape.push_back(operand.size(dim));
    }
    return shape;
}

/// A gradient of an optional part of the options: only where that part is there. Throws ValueError otherwise.
Wanted wanted_like(nb::handle argument, const char* name, const std::optional<ConstTensorView>& of, const Shape& shape,
                   const char* what) {
    if (!of && !argument.is_none() && argument.ptr() != Py_False) {
        raise(PyExc_ValueError, name, " is wanted without ", what);
    }
    return of ? Wanted(argument, name, shape, of->dtype) : Wanted();
}

Shape head_shape(const std::optional<ConstTensorView>& view) {
    if (!view) {
        return {};
    }
    return view->shape[0] == 1 ? Shape{view->shape[1]} : Shape{view->shape[0], view->shape[1]};
}

nb::tuple backward(nb::handle d_out, nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse,
                   nb::handle dq, nb::handle dk, nb::handle dv, nb::handle dbias, nb::handle dsinks, nb::handle dalibi,
                   bool lse_counts_sinks, const HeldMask* mask, std::optional<double> scale, double softcap,
                   nb::handle sinks, const HeldDropout* dropout, const Offsets* offsets, const Runtime* runtime) {
    const Operand query = read_input(q, "q");
    const Operand key = read_input(k, "k");
    const Operand value = read_input(v, "v");
    const Operand d_context = read_input(d_out, "d_out");
    const Operand context = read_input(out, "out");
    const Operand row_lse(lse, "lse");
    check_rank(key, query);
    check_rank(value, query);
    check_rank(d_context, query);
    check_rank(context, query);
    const Options options({mask, scale, softcap, sinks, dropout, offsets});
    const Mask& masks = options.value().mask;

    const Wanted wanted_q(dq, "dq", shape_of(query), query.dtype(), q);
    const Wanted wanted_k(dk, "dk", shape_of(key), key.dtype(), k);
    const Wanted wanted_v(dv, "dv", shape_of(value), value.dtype(), v);
    const Shape bias_shape =
        masks.bias_view ? Shape(masks.bias_view->shape.begin(), masks.bias_view->shape.end()) : Shape{};
    const Wanted wanted_bias = wanted_like(dbias, "dbias", masks.bias_view, bias_shape, "a Mask.bias");
    const Wanted wanted_sinks =
        wanted_like(dsinks, "dsinks", options.value().sinks, head_shape(options.value().sinks), "sinks");
    const Wanted wanted_alibi =
        wanted_like(dalibi, "dalibi", masks.alibi_slopes, head_shape(masks.alibi_slopes), "a Mask.alibi");

    AttentionSaved saved;
    saved.lse = row_lse.row_view();
    saved.lse_counts_sinks = lse_counts_sinks;
    saved.out = context.view();
    AttentionGradients gradients;
    if (wanted_q.given()) {
        gradients.dq = wanted_q.memory().view();
    }
    if (wanted_k.given()) {
        gradients.dk = wanted_k.memory().view();
    }
    if (wanted_v.given()) {
        gradients.dv = wanted_v.memory().view();
    }
    if (wanted_bias.given()) {
        gradients.dbias = wanted_bias.memory().view();
    }
    if (wanted_sinks.given()) {
        gradients.dsinks = wanted_sinks.memory().head_view();
    }
    if (wanted_alibi.given()) {
        gradients.dalibi = wanted_alibi.memory().head_view();
    }
    const auto threads = runtime_of(runtime);
    const ConstTensorView query_view = query.view();
    const ConstTensorView key_view = key.view();
    const ConstTensorView value_view = value.view();
    const ConstTensorView d_context_view = d_context.view();
    {
        const nb::gil_scoped_release without_gil;
        attention_backward(query_view, key_view, value_view, d_context_view, saved, gradients, options.value(),
                           *threads);
    }
    return nb::make_tuple(wanted_q.result(), wanted_k.result(), wanted_v.result(), wanted_bias.result(),
                          wanted_sinks.result(), wanted_alibi.result());
}

}  // namespace

void bind_backward(nb::module_& module) {
    define(
        module, "attention_backward", &backward, nb::arg("d_out"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
        nb::arg("out"), nb::arg("lse"), nb::kw_only(), nb::arg("dq") = true, nb::arg("dk") = true, nb::arg("dv") = true,
        nb::arg("dbias") = nb::none(), nb::arg("dsinks") = nb::none(), nb::arg("dalibi") = nb::none(),
        nb::arg("lse_counts_sinks") = true, nb::arg("mask") = nb::none(), nb::arg("scale") = nb::none(),
        nb::arg("softcap") = 0.0, nb::arg("sinks") = nb::none(), nb::arg("dropout") = nb::none(),
        nb::arg("offsets") = nb::none(), nb::arg("runtime") = nb::none(),
        nb::sig("def attention_backward(d_out: object, q: object, k: object, v: object, out: object, lse: object, *, "
                "dq: object = True, dk: object = True, dv: object = True, dbias: object = None, "
                "dsinks: object = None, dalibi: object = None, lse_counts_sinks: bool = True, "
                "mask: Mask | None = None, scale: float | None = None, softcap: float = 0.0, "
                "sinks: object | None = None, dropout: Dropout | None = None, offsets: Offsets | None = None, "
                "runtime: Runtime | None = None) -> tuple[typing.Any, ...]"),
        "What qkv.attention_backward names: (dq, dk, dv, dbias, dsinks, dalibi).");
}

}  // namespace qkv::python
