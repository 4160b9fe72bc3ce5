// What qkv.torch calls: scaled_dot_product_attention and its gradients over tensors of any rank. Nothing of torch is
// linked: tensors are read through DLPack's exchange table.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <numeric>
#include <utility>

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
    std::int64_t threads;
};

/// The tensors that forward and backward read alike.
class Call {
public:
    Call(nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask, nb::handle keep, const Operand& out,
         const Settings& settings)
        : query_(read_rows(query, "query")),
          key_(read_rows(key, "key")),
          value_(read_rows(value, "value")),
          mask_(read_optional(attn_mask, "attn_mask")),
          keep_(read_optional(keep, "keep")),
          settings_(settings),
          runtime_(runtime_with(settings.threads)),
          batched_(lead_of(out)) {
        add(query_, Kind::tokens);
        add(key_, Kind::key_value);
        add(value_, Kind::key_value);
        add(mask_, Kind::pairs);
        add(keep_, Kind::pairs);
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
        const std::size_t mask_at = 3;
        const std::size_t keep_at = mask_.given() ? 4 : 3;
        std::vector<std::int64_t> ids(static_cast<std::size_t>(batched_.batch()));
        const nb::gil_scoped_release without_gil;
        for (std::int64_t call = 0; call < batched_.calls(); ++call) {
            AttentionOptions options;
            options.scale = settings_.scale;
            if (settings_.is_causal) {
                options.mask = Mask::causal(Align::top_left);
            }
            if (mask_.given()) {
                const ConstTensorView view = batched_.view(mask_at, call);
                options.mask = options.mask & (view.dtype == DType::boolean ? Mask::allowed(view) : Mask::bias(view));
            }
            options.dropout.p = settings_.dropout_p;
            options.dropout.seed = settings_.seed;
            if (keep_.given()) {
                options.dropout.keep = batched_.view(keep_at, call);
            } else if (settings_.dropout_p > 0) {
                std::iota(ids.begin(), ids.end(), call * batched_.batch());
                options.dropout.sequence_ids = ids;
            }
            body([&](std::size_t part) { return batched_.view(part, call); }, options, *runtime_);
        }
    }

private:
    static Shape lead_of(const Operand& out) {
        Shape lead;
        for (int dim = 0; dim < out.rank() - 2; ++dim) {
            lead.push_back(out.size(dim));
        }
        return lead;
    }

    Operand query_, key_, value_, mask_, keep_;
    Settings settings_;
    std::shared_ptr<const Runtime> runtime_;
    Batched batched_;
    std::size_t parts_ = 0;
};

void forward(nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask, nb::handle keep, nb::handle out,
             nb::handle lse, double dropout_p, std::uint64_t seed, bool is_causal, std::optional<double> scale,
             std::int64_t threads) {
    const Operand context(out, "out", Access::write);
    const Operand rows = read_optional(lse, "lse", Access::write);
    Call call(query, key, value, attn_mask, keep, context, {dropout_p, seed, is_causal, scale, threads});
    const std::size_t out_at = call.add(context, Kind::tokens);
    const std::size_t lse_at = call.add(rows, Kind::rows);
    call.run([&](const auto& view, const AttentionOptions& options, const Runtime& runtime) {
        AttentionExtras extras;
        if (rows.given()) {
            extras.lse = view(lse_at);
        }
        attention(view(0), view(1), view(2), view(out_at), options, extras, runtime);
    });
}

void backward(nb::handle d_out, nb::handle query, nb::handle key, nb::handle value, nb::handle attn_mask,
              nb::handle keep, nb::handle out, nb::handle lse, nb::handle d_query, nb::handle d_key, nb::handle d_value,
              nb::handle d_mask, double dropout_p, std::uint64_t seed, bool is_causal, std::optional<double> scale,
              std::int64_t threads) {
    const Operand d_context = read_rows(d_out, "grad_output");
    const Operand context(out, "out", Access::read_value);
    const Operand rows(lse, "lse", Access::read_value);
    const Operand dq(d_query, "grad_query", Access::write);
    const Operand dk(d_key, "grad_key", Access::write);
    const Operand dv(d_value, "grad_value", Access::write);
    const Operand dm = read_optional(d_mask, "grad_attn_mask", Access::write);
    Call call(query, key, value, attn_mask, keep, context, {dropout_p, seed, is_causal, scale, threads});
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
    module.def("torch_forward", &forward, nb::arg("query"), nb::arg("key"), nb::arg("value"),
               nb::arg("attn_mask").none(), nb::arg("keep").none(), nb::arg("out"), nb::arg("lse").none(),
               nb::arg("dropout_p"), nb::arg("seed"), nb::arg("is_causal"), nb::arg("scale").none(), nb::arg("threads"),
               nb::sig("def torch_forward(query: object, key: object, value: object, attn_mask: object | None, "
                       "keep: object | None, out: object, lse: object | None, dropout_p: float, seed: int, "
                       "is_causal: bool, scale: float | None, threads: int) -> None"),
               "What qkv.torch calls: tensors of any rank, out with the broadcast leading sizes.");
    module.def("torch_backward", &backward, nb::arg("grad_output"), nb::arg("query"), nb::arg("key"), nb::arg("value"),
               nb::arg("attn_mask").none(), nb::arg("keep").none(), nb::arg("out"), nb::arg("lse"),
               nb::arg("grad_query"), nb::arg("grad_key"), nb::arg("grad_value"), nb::arg("grad_attn_mask").none(),
               nb::arg("dropout_p"), nb::arg("seed"), nb::arg("is_causal"), nb::arg("scale").none(), nb::arg("threads"),
               nb::sig("def torch_backward(grad_output: object, query: object, key: object, value: object, "
                       "attn_mask: object | None, keep: object | None, out: object, lse: object, grad_query: object, "
                       "grad_key: object, grad_value: object, grad_attn_mask: object | None, dropout_p: float, "
                       "seed: int, is_causal: bool, scale: float | None, threads: int) -> None"),
               "Its gradients, written into tensors with the broadcast leading sizes.");
}

}  // namespace qkv::python
