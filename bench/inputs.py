"""Tensors of a case, and the exact answer for some of its rows."""

import numpy
import torch

TORCH_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
EPSILON = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}


class Inputs:
    """q, k, v, and d_out for backward, as torch tensors [B, H, T, D] of the case's type; `allowed` and `bias` where
    the case has such a mask."""

    def __init__(self, case, seed=0):
        torch.manual_seed(seed)
        dtype = TORCH_TYPES[case.dtype]

        def normal(heads, tokens, width):
            return torch.randn(case.batch, heads, tokens, width).to(dtype)

        self.q = normal(case.heads, case.queries, case.head_dim)
        self.k = normal(case.kv_heads, case.keys, case.head_dim)
        self.v = normal(case.kv_heads, case.keys, case.value_dim)
        self.d_out = normal(case.heads, case.queries, case.value_dim) if case.work == "backward" else None
        self.allowed = None
        self.bias = None
        if case.mask == "boolean":
            self.allowed = torch.rand(case.queries, case.keys) < 0.9
            self.allowed[:, 0] = True
        elif case.mask == "additive":
            self.bias = torch.randn(case.queries, case.keys).to(dtype)


def allowed_rows(case, inputs, rows):
    """[rows, keys] of booleans: what the case's mask leaves to these queries."""
    key = torch.arange(case.keys)[None, :]
    query = rows[:, None] + (case.keys - case.queries)
    if case.mask == "packed":
        segment = torch.repeat_interleave(torch.arange(len(case.lengths)), torch.tensor(case.lengths))
        return (segment[rows][:, None] == segment[None, :]) & (key <= query)
    if case.mask == "causal":
        return key <= query
    if case.window is not None:
        return (key <= query) & (key > query - case.window)
    if case.mask == "boolean":
        return inputs.allowed[rows]
    return torch.ones(len(rows), case.keys, dtype=torch.bool)


def check_context(case, inputs, context):
    """The largest error of a contender's context over sampled rows, in roundings of the type at the size of the
    largest value. Every contender passes through it before it is timed."""
    generator = numpy.random.default_rng(1)
    rows = torch.from_numpy(numpy.unique(generator.integers(0, case.queries, 24)))
    rows = torch.cat([rows, torch.tensor([0, case.queries - 1])]).unique()
    allowed = allowed_rows(case, inputs, rows)
    worst = 0.0
    for batch, head in {(0, 0), (case.batch - 1, case.heads - 1), (case.batch // 2, case.heads // 2)}:
        kv_head = head // (case.heads // case.kv_heads)
        scores = inputs.q[batch, head, rows].double() @ inputs.k[batch, kv_head].double().T / case.head_dim**0.5
        if inputs.bias is not None:
            scores = scores + inputs.bias[rows].double()
        weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
        exact = weights @ inputs.v[batch, kv_head].double()
        error = (context[batch, head][rows].double() - exact).abs().max().item()
        if not error < float("inf"):
            return float("inf")
        worst = max(worst, error / (EPSILON[case.dtype] * max(exact.abs().max().item(), 1e-30)))
    return worst


# Roundings of the type: what a plain computation in it stays within on these inputs, with room. float32 sums of
# thousands of terms in any order; a 16-bit one rounds scores, weights or output somewhere on the way.
ALLOWED_ROUNDINGS = {"f32": 100.0, "bf16": 6.0, "f16": 12.0}
