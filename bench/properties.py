"""What qkv promises about its own times, each held against a plain call of its own in turns: that a mask costs what it
keeps, that two threads do twice the work of one, and that nothing the function can do falls to a slow path."""

import dataclasses
import statistics

import numpy
import qkv
import qkv.torch
import torch

import measure

# One head each; a mask's cost is the head's.
TOKENS, HEADS, HEAD_DIM = 4096, 4, 64
FEATURE_TOKENS = 1024


@dataclasses.dataclass
class Timed:
    """What measure.time_case wants of a contender."""

    run: object


def ratios(runs, seconds):
    """{name: median over rounds of its time by that of the first}, and the first's median seconds."""
    times = measure.time_case({name: Timed(run) for name, run in runs.items()}, seconds, least_rounds=7)
    first = times[next(iter(times))]
    return {name: statistics.median(a / b for a, b in zip(own, first)) for name, own in times.items()}, first


def array(*shape):
    return numpy.random.default_rng(sum(shape)).standard_normal(shape, numpy.float32)


def typed(values, dtype):
    """bfloat16 is a type that only torch has here."""
    if dtype == "bf16":
        return torch.from_numpy(values).bfloat16()
    return values.astype(numpy.float16 if dtype == "f16" else numpy.float32)


def masks():
    """(name, mask, scores of a head that it keeps), everything first."""
    t = TOKENS
    yield "none", None, t * t
    yield "causal", qkv.Mask.causal("bottom_right"), t * (t + 1) // 2
    for window in (2048, 1024, 512, 256, 128):
        kept = sum(min(window, row + 1) for row in range(t))
        yield f"window {window}", qkv.Mask.window(window - 1, 0, "bottom_right"), kept
    for keys in (3072, 1024):
        yield f"padded to {keys} keys", qkv.Mask.key_end([keys]), t * keys
    for pieces in (4, 16):
        starts = [t // pieces * piece for piece in range(pieces + 1)]
        yield f"{pieces} packed sequences", qkv.Mask.packed(starts, starts), t * t // pieces
    block, blocks = 128, TOKENS // 128
    for kept in (8, 2):
        rows = [sorted({(row * 7 + step * 5) % blocks for step in range(kept)}) for row in range(blocks)]
        starts = numpy.concatenate([[0], numpy.cumsum([len(row) for row in rows])]).tolist()
        yield (f"{kept} of {blocks} blocks", qkv.Mask.blocks(block, block, starts, sum(rows, [])),
               sum(len(row) for row in rows) * block * block)


def kept_fractions(dtype, threads, seconds):
    q, k, v = (typed(array(1, HEADS, TOKENS, HEAD_DIM) + shift, dtype) for shift in (0, 0.1, 0.2))
    out = torch.empty_like(q) if dtype == "bf16" else numpy.empty_like(q)
    runtime = qkv.Runtime(threads)
    kept = {}
    runs = {}
    for name, mask, scores in masks():
        kept[name] = scores / TOKENS**2
        runs[name] = lambda mask=mask: qkv.attention(q, k, v, out=out, mask=mask, runtime=runtime)
    found, _ = ratios(runs, seconds)
    yield f"| mask, {dtype} | scores kept | time | time ÷ kept |"
    yield "|---|---|---|---|"
    for name, ratio in found.items():
        yield f"| {name} | {kept[name]:.3f} | {ratio:.3f} | {ratio / kept[name]:.2f} |"


SHAPES = {"B1 H8 T4096 D64": dict(heads=8, queries=4096), "B1 H12 T1024 D64 causal": dict(heads=12, causal=True),
          "B1 H32/8 T2048 D128 causal": dict(heads=32, kv_heads=8, queries=2048, head_dim=128, causal=True),
          "B1 H1 T8192 D64 causal": dict(heads=1, queries=8192, causal=True)}


class Call:
    """Forward, or forward and backward, of one shape with some options."""

    def __init__(self, threads, dtype="f32", *, heads=8, kv_heads=0, queries=FEATURE_TOKENS, head_dim=HEAD_DIM,
                 value_dim=0, causal=False, mask=None, bias=None, backward=False, **options):
        value_dim, kv_heads = value_dim or head_dim, kv_heads or heads
        self.q = typed(array(1, heads, queries, head_dim), dtype)
        self.k = typed(array(1, kv_heads, queries, head_dim), dtype)
        self.v = typed(array(1, kv_heads, queries, value_dim), dtype)
        self.d_out = typed(array(1, heads, queries, value_dim), dtype)
        empty = torch.empty_like if dtype == "bf16" else numpy.empty_like
        self.out = empty(self.d_out)
        self.gradients = {"dq": empty(self.q), "dk": empty(self.k), "dv": empty(self.v)}
        self.lse = numpy.empty((1, heads, queries), numpy.float32)
        if bias is not None:
            mask = qkv.Mask.bias(bias)
            self.gradients["dbias"] = numpy.empty_like(bias)
        if causal:
            mask = qkv.Mask.causal("bottom_right")
        self.options = {"mask": mask, "runtime": qkv.Runtime(threads), **options}
        self.backward = backward
        self.work = (head_dim + value_dim) * heads  # per score

    def __call__(self):
        if not self.backward:
            qkv.attention(self.q, self.k, self.v, out=self.out, **self.options)
            return
        qkv.attention_with(self.q, self.k, self.v, out=self.out, lse=self.lse, **self.options)
        qkv.attention_backward(self.d_out, self.q, self.k, self.v, self.out, self.lse, **self.gradients, **self.options)


def thread_gains(threads, seconds):
    yield f"| shape | {threads} threads against one, forward | forward and backward |"
    yield "|---|---|---|"
    for dtype in ("f32", "bf16"):
        for name, shape in SHAPES.items():
            gains = []
            for backward in (False, True):
                found, _ = ratios({str(count): Call(count, dtype, backward=backward, **shape)
                                   for count in (threads, 1)}, seconds)
                gains.append(found["1"])
            yield f"| {name} {dtype} | {gains[0]:.2f} × | {gains[1]:.2f} × |"


def features():
    """{name: what is asked for beside the plain call}"""
    t, heads = FEATURE_TOKENS, 8
    bias = array(1, heads, t, t)
    return {
        "plain": {},
        "dropout 0.1": dict(dropout=qkv.Dropout(0.1, seed=1)),
        "bias, and its gradient": dict(bias=bias),
        "additive mask": dict(mask=qkv.Mask.bias(bias)),
        "boolean mask": dict(mask=qkv.Mask.allowed(bias > -1)),
        "ALiBi": dict(mask=qkv.Mask.alibi(numpy.geomspace(0.5, 2**-8, heads).astype(numpy.float32))),
        "softcap": dict(softcap=30.0),
        "sinks": dict(sinks=array(heads)),
        "grouped heads 8/2": dict(kv_heads=2),
        "one key head 8/1": dict(kv_heads=1),
        "Dv 128": dict(value_dim=128),
        "D 192, Dv 128": dict(head_dim=192, value_dim=128),
        "D 40": dict(head_dim=40),
        "D 65": dict(head_dim=65),
        "D 100": dict(head_dim=100),
        "D 127": dict(head_dim=127),
    }


def feature_costs(dtype, threads, seconds):
    yield f"| beside the plain call, {dtype} | time per operation, forward | forward and backward |"
    yield "|---|---|---|"
    costs = {}
    for backward in (False, True):
        calls = {name: Call(threads, dtype, backward=backward, **asked) for name, asked in features().items()}
        found, _ = ratios(calls, seconds)
        plain = calls["plain"].work
        for name, ratio in found.items():
            costs.setdefault(name, []).append(ratio * plain / calls[name].work)
    for name, (forward, both) in costs.items():
        yield f"| {name} | {forward:.2f} | {both:.2f} |"


def small_calls(seconds):
    """A call of the drop-in beside torch's own, and one over NumPy's arrays."""
    yield "| call | torch | qkv.torch | more |"
    yield "|---|---|---|---|"
    one = lambda times: statistics.median(times) * 1e6
    for name, shape, grad in (("B1 H1 T6 D2", (1, 1, 6, 2), False), ("the same, query.requires_grad", (1, 1, 6, 2), True),
                              ("B1 H8 T1 D64", (1, 8, 1, 64), False), ("the same, query.requires_grad", (1, 8, 1, 64), True)):
        q, k, v = (torch.from_numpy(array(*shape)) for _ in range(3))
        q.requires_grad_(grad)
        times = measure.time_case(
            {"torch": Timed(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)),
             "qkv": Timed(lambda: qkv.torch.scaled_dot_product_attention(q, k, v))}, seconds, least_rounds=7)
        theirs, ours = one(times["torch"]), one(times["qkv"])
        yield f"| {name} | {theirs:.1f} µs | {ours:.1f} µs | {ours - theirs:.1f} µs |"
    q, k, v, out = (array(1, 1, 6, 2) for _ in range(4))
    _, first = ratios({"NumPy": lambda: qkv.attention(q, k, v, out=out)}, seconds)
    yield f"| B1 H1 T6 D2, NumPy, `out=` | | {one(first):.1f} µs | |"


def lines(threads, seconds):
    """The lines of docs/properties.md, as they are found."""
    yield ("What a mask leaves out is not computed: time by the time of no mask, H4 T4096 D64, in turns "
           f"({threads} threads, medians of the rounds' ratios). Tiles are 64 × 64, so a window computes more "
           "than it keeps: of 128, in blocks of six rows, 1.3 times as much, and 1.5 times in whole tiles (AMX).")
    yield ""
    for dtype in ("f32", "bf16"):
        yield from kept_fractions(dtype, threads, 4 * seconds)
        yield ""
    if threads > 1:
        yield "Threads:"
        yield ""
        yield from thread_gains(threads, seconds)
        yield ""
    yield "Everything of the function beside the plain call of H8 T1024 D64, one thread; 1 is the plain call's rate:"
    yield ""
    for dtype in ("f32", "bf16", "f16"):
        yield from feature_costs(dtype, 1, 4 * seconds)
        yield ""
    torch.set_num_threads(1)
    yield "Small calls from Python, one thread:"
    yield ""
    yield from small_calls(seconds)
