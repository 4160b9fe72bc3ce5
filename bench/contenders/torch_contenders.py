"""PyTorch: scaled_dot_product_attention as a user calls it."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from inputs import allowed_rows

from . import Prepared, Unavailable


class Torch:
    name = "torch"
    version = torch.__version__

    def prepare(self, case, inputs, threads):
        torch.set_num_threads(threads)
        options = {"enable_gqa": case.kv_heads != case.heads}
        if case.mask == "packed":
            # Nested tensors fall to the slow path on a CPU; one call per sequence is what is fastest.
            return self.prepare_packed(case, inputs)
        if case.mask == "causal" and case.queries == case.keys:
            options["is_causal"] = True
        elif case.mask in ("boolean", "causal") or case.window is not None:
            if case.queries * case.keys > 1 << 29:
                raise Unavailable("a mask of this size does not fit")
            options["attn_mask"] = allowed_rows(case, inputs, torch.arange(case.queries))
        elif case.mask == "additive":
            options["attn_mask"] = inputs.bias
        held = {}
        if case.work != "backward":
            @torch.inference_mode()
            def run():
                held["out"] = scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, **options)
        else:
            q, k, v = (x.clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))

            def run():
                held["out"] = scaled_dot_product_attention(q, k, v, **options)
                torch.autograd.grad(held["out"], (q, k, v), inputs.d_out)

        return Prepared(run, lambda: held["out"])

    def prepare_packed(self, case, inputs):
        if case.work == "backward":
            raise Unavailable("packed backward is not written")
        parts = [[x.split(case.lengths, dim=2) for x in (inputs.q, inputs.k, inputs.v)]]
        q, k, v = parts[0]
        held = {}

        @torch.inference_mode()
        def run():
            held["out"] = [scaled_dot_product_attention(*one, is_causal=True, enable_gqa=case.kv_heads != case.heads)
                           for one in zip(q, k, v)]

        return Prepared(run, lambda: torch.cat(held["out"], dim=2))


def contenders():
    return [Torch()]
