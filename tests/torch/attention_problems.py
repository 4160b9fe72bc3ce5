"""Random attention problems and PyTorch's answers: shared by the goldens and the live comparison.

A problem's bytes are those that tests/support/attention_file.hpp describes.
"""
import math
import struct

import torch
from error_rule import DTYPES

CODES = ("f32", "bf16", "f16", "f64")  # as attention_tool counts them


def pick(generator, low, high):
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def chance(generator, probability):
    return float(torch.rand(1, generator=generator)) < probability


def make(seed, most_tokens=40):
    """A random problem: a dict of sizes, settings and float64 tensors whose values are exact in its dtype."""
    g = torch.Generator().manual_seed(seed)
    p = {"seed": seed, "dtype": ("f32", "f64", "bf16", "f16")[pick(g, 0, 3)]}
    p["kv_heads"] = pick(g, 1, 3)
    p["heads"] = p["kv_heads"] * pick(g, 1, 3)
    p["batch"], p["queries"], p["keys"] = pick(g, 1, 3), pick(g, 1, most_tokens), pick(g, 1, most_tokens)
    p["head_dim"], p["value_dim"] = pick(g, 1, 48), pick(g, 1, 48)
    if chance(g, 0.1):
        p["queries"], p["keys"] = pick(g, 60, 140), pick(g, 60, 140)
    p["causal"] = pick(g, 0, 2)
    p["left"] = pick(g, 0, 20) if chance(g, 0.2) else -1
    p["right"] = pick(g, 0, 20) if chance(g, 0.2) else -1
    p["scale"] = 1 / math.sqrt(p["head_dim"]) if chance(g, 0.8) else float(torch.randn(1, generator=g))
    p["softcap"] = float(pick(g, 1, 20)) if chance(g, 0.2) else 0.0
    p["p"] = 0.0
    storage = DTYPES[p["dtype"]]
    compute = torch.float64 if p["dtype"] == "f64" else torch.float32

    def normal(shape, dtype):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).double()

    b, h, hkv, tq, tk = (p[name] for name in ("batch", "heads", "kv_heads", "queries", "keys"))
    p["q"] = normal((b, h, tq, p["head_dim"]), storage)
    p["k"] = normal((b, hkv, tk, p["head_dim"]), storage)
    p["v"] = normal((b, hkv, tk, p["value_dim"]), storage)
    p["d_out"] = normal((b, h, tq, p["value_dim"]), storage)
    scores = (b, h, tq, tk)
    p["allowed"] = (torch.rand(scores, generator=g) < 0.7).double() if chance(g, 0.3) else None
    p["bias"] = normal(scores, compute) if chance(g, 0.3) else None
    p["sinks"] = normal((1, h, 1, 1), compute) if chance(g, 0.25) else None
    p["keep"] = None
    if chance(g, 0.25):
        p["p"] = 0.1 * pick(g, 1, 8)
        p["keep"] = (torch.rand(scores, generator=g) >= p["p"]).double()
    p["threads"] = pick(g, 1, 3)
    return p


def encode(p):
    """The problem as attention_tool reads it."""
    optional = ("allowed", "bias", "sinks", "keep")
    header = [CODES.index(p["dtype"])]
    header += [p[n] for n in ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "value_dim")]
    header += [p["causal"], p["left"], p["right"]] + [int(p[n] is not None) for n in optional] + [p["threads"]]
    data = struct.pack("<16q3d", *header, p["scale"], p["softcap"], p["p"])
    for name in ("q", "k", "v", "d_out") + optional:
        if p[name] is not None:
            data += p[name].contiguous().numpy().tobytes()
    return data


def answer_shapes(p):
    """What attention_tool gives, in order: name and shape."""
    rows = (p["batch"], p["heads"], p["queries"])
    shapes = [("out", rows + (p["value_dim"],)), ("lse", rows), ("dq", tuple(p["q"].shape)), ("dk", tuple(p["k"].shape))]
    shapes.append(("dv", tuple(p["v"].shape)))
    if p["bias"] is not None:
        shapes.append(("dbias", rows + (p["keys"],)))
    if p["sinks"] is not None:
        shapes.append(("dsinks", (1, p["heads"], 1, 1)))
    return shapes


def answer(p, dtype):
    """PyTorch's results by the plain formula in `dtype`, gradients by autograd; rows without keys are 0."""
    leaves = {n: p[n].clone().to(dtype).requires_grad_() for n in ("q", "k", "v", "bias", "sinks") if p[n] is not None}
    group = p["heads"] // p["kv_heads"]
    k = leaves["k"].repeat_interleave(group, 1)
    v = leaves["v"].repeat_interleave(group, 1)
    s = leaves["q"] @ k.transpose(-1, -2) * p["scale"]
    if p["softcap"] > 0:
        s = p["softcap"] * torch.tanh(s / p["softcap"])
    if p["bias"] is not None:
        s = s + leaves["bias"]
    i = torch.arange(p["queries"])[:, None]
    j = torch.arange(p["keys"])[None, :]
    allowed = torch.ones(s.shape, dtype=torch.bool)
    if p["causal"]:
        allowed &= j <= i + (p["keys"] - p["queries"] if p["causal"] == 2 else 0)
    if p["left"] >= 0:
        allowed &= j >= i - p["left"]
    if p["right"] >= 0:
        allowed &= j <= i + p["right"]
    if p["allowed"] is not None:
        allowed &= p["allowed"].bool()
    if p["sinks"] is not None:
        s = torch.cat([s, leaves["sinks"].expand(s.shape[:3] + (1,))], -1)
        allowed = torch.cat([allowed, torch.ones(s.shape[:3] + (1,), dtype=torch.bool)], -1)
    empty = ~allowed.any(-1, keepdim=True)
    s = s.masked_fill(~allowed, -math.inf)
    weights = torch.softmax(s.masked_fill(empty, 0), -1).masked_fill(~allowed, 0)[..., : p["keys"]]
    if p["keep"] is not None:
        weights = weights * p["keep"].to(dtype) / (1 - p["p"])
    out = weights @ v
    (out * p["d_out"].to(dtype)).sum().backward()
    result = {"out": out.detach(), "lse": torch.logsumexp(s.detach(), -1)}
    result.update({"d" + n: leaf.grad for n, leaf in leaves.items()})
    return {n: t.double() for n, t in result.items()}
