// What qkv.torch calls: scaled_dot_product_attention and its gradients over tensors of any rank. Nothing of torch is
// linked: tensors are read through DLPack's exchange table.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "array.hpp"
#include "batched.hpp"
#include "bindings.hpp"
#include "qkv/attention.hpp"
#include "raise.hpp"
#include "runtime.hpp"

namespace qkv::python {

namespace {

using Kind = Batched::Kind;
using Access = Operand::Access;

/// The tensor, or a contiguous copy where its rows are not: the library wants a last stride of 1.
Operand read_rows(nb::handle tensor, const char* name) {
    Operand operand(tensor, name, Access::read_value);
    const int last = operand.rank() - 1;
    if (last < 1) {
        raise(PyExc_ValueError, name, " has shape ", operand.shape_text(), "; expected at least 2 dimensions");
    }
    if (operand.size(last) > 1 && operand.stride(last) != 1) {
        operand = Operand(tensor.attr("contiguous")(), name, Access::read_value);
    }
    return operand;
}

Operand read_optional(nb::handle tensor, const char* name, Access access = Access::read_value) {
    return optional_operand(tensor, name, access);
}

/// scaled_dot_product_attention's arguments, beside the tensors.
struct Settings {
    double dropout_p;
    std::uint64_t seed;
    bool is_causal;
    std::optional<double> scale;
    bool enable_gqa;
    std::int64_t threads;
};

/// The tensors that forward and backward read alike.
struct Inputs {
    Operand query, key, value, mask, keep;

    Inputs(nb::handle q, nb::handle k, nb::handle v, nb::handle attn_mask, nb::handle kept)
        : query(read_rows(q, "query")),
          key(read_rows(k, "key")),
          value(read_rows(v, "value")),
          mask(read_optional(attn_mask, "attn_mask")),
          keep(read_optional(kept, "keep")) {}

    /// The output's sizes before the last two: those of query, key and value, broadcast.
    [[nodiscard]] Shape lead(bool grouped) const {
        const int rank = std::max({query.rank(), key.rank(), value.rank()}) - 2;
        Shape lead(static_cast<std::size_t>(rank), 1);
        for (const Operand* operand : {&query, &key, &value}) {
            // With grouped heads the query's number of them counts.
            const int own = operand->rank() - 2;
            for (int dim = 0; dim < own - (grouped && operand != &query ? 1 : 0); ++dim) {
                std::int64_t& size = lead[static_cast<std::size_t>(rank - own + dim)];
                size = size == 1 ? operand->size(dim) : size;
            }
        }
        return lead;
    }
};

/// How many heads keys and values have: both that many, or 1. Throws ValueError unless they fit the query's.
std::int64_t kv_heads(const Inputs& inputs, const Shape& lead, bool grouped) {
    const auto heads = [](const Operand& operand) { return operand.rank() < 3 ? 1 : operand.size(operand.rank() - 3); };
    const std::int64_t keys = heads(inputs.key);
    const std::int64_t most = keys == 1 ? heads(inputs.value) : keys;
    if (!grouped && most != 1 && most != lead.back()) {
        raise(PyExc_ValueError, "key and value have ", most, " heads; expected ", lead.back(), ", or enable_gqa");
    }
    return most;
}

Shape lead_of(const Operand& out) {
    Shape lead;
    for (int dim = 0; dim < out.rank() - 2; ++dim) {
        lead.push_back(out.size(dim));
    }
    return lead;
}

/// The given tensor, or a new one of query's type for None.
nb::object output_of(nb::handle out, nb::handle query, const Inputs& inputs, bool grouped) {
    if (!out.is_none()) {
        return nb::borrow(out);
    }
    Shape shape = inputs.lead(grouped);
    shape.push_back(inputs.query.size(inputs.query.rank() - 2));
    shape.push_back(inputs.value.size(inputs.value.rank() - 1));
    const nb::object sizes = to_tuple(shape);
    static PyObject* const name = PyUnicode_InternFromString("new_empty");
    PyObject* const arguments[] = {query.ptr(), sizes.ptr()};
    PyObject* tensor = PyObject_VectorcallMethod(name, arguments, 2, nullptr);
    if (tensor == nullptr) {
        throw nb::python_error();
    }
    return nb::steal(tensor);
}

/// One call of scaled_dot_product_attention as a row of calls of the library.
class Call {
public:
    Call(const Inputs& inputs, const Operand& out, const Settings& settings)
        : settings_(settings),
          runtime_(runtime_with(settings.threads)),
          batched_(lead_of(out), kv_heads(inputs, lead_of(out), settings.enable_gqa)) {
        if (settings.is_causal && inputs.mask.given()) {
            raise(PyExc_ValueError, "attn_mask is given and is_causal is True; expected one of them");
        }
        add(inputs.query, Kind::tokens);
        add(inputs.key, Kind::key_value);
        add(inputs.value, Kind::key_value);
        mask_at_ = inputs.mask.given() ? add(inputs.mask, Kind::pairs) : 0;
        keep_at_ = inputs.keep.given() ? add(inputs.keep, Kind::pairs) : 0;
    }

    /// Adds what is given, and says where its view will be.
    std::size_t add(const Operand& operand, Kind kind) {
        if (operand.given()) {
            batched_.add(operand, kind);
            ++parts_;
        }
        return parts_ - 1;
    }

    /// body(part views, options, runtime) for each call, without the GIL.
    template <class Body>
    void run(const Body& body) {
        batched_.merge();
        std::vector<std::int64_t> ids(static_cast<std::size_t>(batched_.batch()));
        const nb::gil_scoped_release without_gil;
        for (std::int64_t call = 0; call < batched_.calls(); ++call) {
            AttentionOptions options;
            options.scale = settings_.scale;
            if (settings_.is_causal) {
                options.mask = Mask::causal(Align::top_left);
            }
            if (mask_at_ != 0) {
                const ConstTensorView view = batched_.view(mask_at_, call);
                options.mask = options.mask & (view.dtype == DType::boolean ? Mask::allowed(view) : Mask::bias(view));
            }
            options.dropout.p = settings_.dropout_p;
            options.dropout.seed = settings_.seed;
            if (keep_at_ != 0) {
                options.dropout.keep = batched_.view(keep_at_, call);
            } else if (settings_.dropout_p > 0) {
                std::iota(ids.begin(), ids.end(), call * batched_.batch());
                options.dropout.sequence_ids = ids;
            }
            body([&](std::size_t part) { return batched_.view(part, call); }, options, *runtime_);
        }
    }

private:
    Settings settings_;
    std::shared_ptr<const Runtime> runtime_;
    Batched batched_;
    std::size_t parts_ = 0;
    std::size_t mask_at_ = 0;  // 0: none, there the query is
    std::size_t keep_at_ = 0;
};

nb::object forward(nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask, nb::handle keep,
                   nb::handle out, nb::handle lse, double dropout_p, std::uint64_t seed, bool is_causal,
                   std::optional<double> scale, bool enable_gqa, std::int64_t threads) {
    const Inputs inputs(query, key, value, attn_mask, keep);
    nb::object result = output_of(out, query, inputs, enable_gqa);
    const Operand context(result, "out", Access::write_new);
    const Operand rows = read_optional(lse, "lse", Access::write_new);
    Call call(inputs, context, {dropout_p, seed, is_causal, scale, enable_gqa, threads});
    const std::size_t out_at = call.add(context, Kind::tokens);
    const std::size_t lse_at = call.add(rows, Kind::rows);
    call.run([&](const auto& view, const AttentionOptions& options, const Runtime& runtime) {
        AttentionExtras extras;
        if (rows.given()) {
            extras.lse = view(lse_at);
        }
        attention(view(0), view(1), view(2), view(out_at), options, extras, runtime);
    });
    return result;
}

void backward(nb::handle d_out, nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask,
              nb::handle keep, nb::handle out, nb::handle lse, nb::handle d_query, nb::handle d_key, nb::handle d_value,
              nb::handle d_mask, double dropout_p, std::uint64_t seed, bool is_causal, std::optional<double> scale,
              std::int64_t threads) {
    const Operand d_context = read_rows(d_out, "grad_output");
    const Operand context(out, "out", Access::read_value);
    const Operand rows(lse, "lse", Access::read_value);
    const Operand dq(d_query, "grad_query", Access::write_new);
    const Operand dk(d_key, "grad_key", Access::write_new);
    const Operand dv(d_value, "grad_value", Access::write_new);
    const Operand dm = read_optional(d_mask, "grad_attn_mask", Access::write_new);
    const Inputs inputs(query, key, value, attn_mask, keep);
    // Whether heads are grouped was checked by forward.
    Call call(inputs, context, {dropout_p, seed, is_causal, scale, true, threads});
    const std::size_t d_out_at = call.add(d_context, Kind::tokens);
    const std::size_t out_at = call.add(context, Kind::tokens);
    const std::size_t lse_at = call.add(rows, Kind::rows);
    const std::size_t dq_at = call.add(dq, Kind::tokens);
    const std::size_t dk_at = call.add(dk, Kind::key_value);
    const std::size_t dv_at = call.add(dv, Kind::key_value);
    const std::size_t dm_at = call.add(dm, Kind::pairs);
    call.run([&](const auto& view, const AttentionOptions& options, const Runtime& runtime) {
        AttentionSaved saved;
        saved.lse = view(lse_at);
        saved.out = view(out_at);
        AttentionGradients gradients;
        gradients.dq = view(dq_at);
        gradients.dk = view(dk_at);
        gradients.dv = view(dv_at);
        if (dm.given()) {
            gradients.dbias = view(dm_at);
        }
        attention_backward(view(0), view(1), view(2), view(d_out_at), saved, gradients, options, runtime);
    });
}

}  // namespace

void bind_torch_attention(nb::module_& module) {
    module.def("torch_forward", &forward, nb::arg("query").none(), nb::arg("key").none(), nb::arg("value").none(),
               nb::arg("attn_mask").none(), nb::arg("keep").none(), nb::arg("out").none(), nb::arg("lse").none(),
               nb::arg("dropout_p"), nb::arg("seed"), nb::arg("is_causal"), nb::arg("scale").none(),
               nb::arg("enable_gqa"), nb::arg("threads"),
               nb::sig("def torch_forward(query: object, key: object, value: object, attn_mask: object | None, "
                       "keep: object | None, out: object | None, lse: object | None, dropout_p: float, seed: int, "
                       "is_causal: bool, scale: float | None, enable_gqa: bool, threads: int) -> typing.Any"),
               "What qkv.torch calls: tensors of any rank. Returns out, or a new tensor for None.");
    module.def("torch_backward", &backward, nb::arg("grad_output").none(), nb::arg("query").none(),
               nb::arg("key").none(), nb::arg("value").none(), nb::arg("attn_mask").none(), nb::arg("keep").none(),
               nb::arg("out").none(), nb::arg("lse").none(), nb::arg("grad_query").none(), nb::arg("grad_key").none(),
               nb::arg("grad_value").none(), nb::arg("grad_attn_mask").none(), nb::arg("dropout_p"), nb::arg("seed"),
               nb::arg("is_causal"), nb::arg("scale").none(), nb::arg("threads"),
               nb::sig("def torch_backward(grad_output: object, query: object, key: object, value: object, "
                       "attn_mask: object | None, keep: object | None, out: object, lse: object, grad_query: object, "
                       "grad_key: object, grad_value: object, grad_attn_mask: object | None, dropout_p: float, "
                       "seed: int, is_causal: bool, scale: float | None, threads: int) -> None"),
               "Its gradients, written into tensors with the broadcast leading sizes.");
}

}  // namespace qkv::python
