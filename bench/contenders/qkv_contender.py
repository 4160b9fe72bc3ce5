"""qkv, through its Python package, into memory of the caller."""

import numpy
import qkv
import torch

from . import Prepared


def mask_of(case, inputs):
    if case.mask == "causal":
        return qkv.Mask.causal("bottom_right")
    if case.window is not None:
        return qkv.Mask.window(case.window - 1, 0, "bottom_right")
    if case.mask == "boolean":
        return qkv.Mask.allowed(inputs.allowed)
    if case.mask == "additive":
        return qkv.Mask.bias(inputs.bias)
    if case.mask == "packed":
        starts = numpy.concatenate([[0], numpy.cumsum(case.lengths)]).tolist()
        return qkv.Mask.packed(starts, starts) & qkv.Mask.causal("bottom_right")
    return None


class Qkv:
    name = "qkv"
    version = qkv.__version__

    def prepare(self, case, inputs, threads):
        runtime = qkv.Runtime(threads)
        mask = mask_of(case, inputs)
        # Small calls through NumPy, which reads arrays faster than DLPack; bf16 only torch knows.
        convert = (lambda x: x.numpy()) if case.dtype != "bf16" else (lambda x: x)
        q, k, v = convert(inputs.q), convert(inputs.k), convert(inputs.v)
        out = torch.empty(case.batch, case.heads, case.queries, case.value_dim, dtype=inputs.q.dtype)
        target = convert(out)
        if case.work != "backward":
            return Prepared(lambda: qkv.attention(q, k, v, out=target, mask=mask, runtime=runtime), lambda: out)
        d_out = convert(inputs.d_out)
        gradients = {name: convert(torch.empty_like(x)) for name, x in
                     (("dq", inputs.q), ("dk", inputs.k), ("dv", inputs.v))}
        lse = numpy.empty((case.batch, case.heads, case.queries), numpy.float32)

        def run():
            qkv.attention_with(q, k, v, out=target, lse=lse, mask=mask, runtime=runtime)
            qkv.attention_backward(d_out, q, k, v, target, lse, mask=mask, runtime=runtime, **gradients)

        return Prepared(run, lambda: out)


def contenders():
    return [Qkv()]
