"""The grids and cases by which PyTorch tests its own fused attention on the CPU, at its tolerances.

Sizes, types and tolerances are those of PyTorch's test_transformers.py (2.15): fused attention beside the math path, with
every broadcast of a mask; and the cases that its issues left behind. The reference for
16-bit types is the math path in float32, rounded.
"""

import itertools
import math

import torch
from drop_in import math_path, ours
from tally import Tally

TOLERANCES = {torch.float64: (1e-7, 1e-7), torch.float32: (5e-6, 1e-5), torch.bfloat16: (5e-2, 5e-2),
              torch.float16: (1e-2, 1e-2)}


def apart(got, expected):
    """Why `got` misses, or None."""
    rtol, atol = TOLERANCES[got.dtype]
    try:
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=rtol, atol=atol)
    except AssertionError as error:
        return " ".join(str(error).split())
    return None


def beside_math(shapes, dtype, train, mask=None, **options):
    """Why the outputs or gradients differ from the math path's, or None."""
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    higher = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    results = []
    for function, used in ((ours, dtype), (math_path, higher)):
        leaves = [tensor.to(used, copy=True).requires_grad_(train) for tensor in tensors]
        given = mask.to(used) if mask is not None and mask.is_floating_point() else mask
        out = function(*leaves, attn_mask=given, **options)
        results.append([out.detach()] + (list(torch.autograd.grad(out.sum(), leaves)) if train else []))
    for name, got, expected in zip(("out", "dq", "dk", "dv"), *results):
        if (reason := apart(got, expected)) is not None:
            return f"{name}: {reason}"
    return None


def grid(batches):
    tally = Tally("PyTorch's fused-versus-math grid", "PyTorch's tolerances, per type")
    for dtype, batch, tokens, heads, width, causal, train in itertools.product(
            TOLERANCES, batches, (267, 1030), (1, 3), (8, 16), (False, True), (False, True)):
        torch.manual_seed(0)
        name = f"{dtype} batch {batch}, tokens {tokens}, heads {heads}, head_dim {width}, causal {causal}, train {train}"
        tally.add(name, beside_math([(batch, heads, tokens, width)] * 3, dtype, train, is_causal=causal))
    return tally


def masks(batches):
    tally = Tally("PyTorch's grid of mask broadcasts", "PyTorch's tolerances, per type")
    for batch, dtype, boolean, train in itertools.product(batches, TOLERANCES, (False, True), (False, True)):
        queries, keys, heads, width = 267, 514, 3, 16
        sizes = (batch, heads, queries, keys)
        for shape in [s for rank in (2, 4) for s in itertools.product(*((1, size) for size in sizes[-rank:]))]:
            torch.manual_seed(0)
            mask = torch.randint(0, 2, shape).bool() if boolean else torch.randn(shape)
            name = f"{dtype} mask {shape}, boolean {boolean}, train {train}, batch {batch}"
            shapes = [(batch, heads, queries, width)] + [(batch, heads, keys, width)] * 2
            tally.add(name, beside_math(shapes, dtype, train, mask))
    return tally


def named():
    """What PyTorch's issues left behind."""
    tally = Tally("Cases of PyTorch's issues", "PyTorch's tolerances, or equality")

    def expect(name, reason):
        torch.manual_seed(0)
        tally.add(name, reason())

    def equal(a, b):
        return None if torch.equal(a, b) else "not equal"

    def whole_blocks_masked():
        band = torch.full((600, 600), -math.inf).triu(1) + torch.full((600, 600), -math.inf).tril(-10)
        return beside_math([(1, 2, 600, 8)] * 3, torch.float32, True, band)

    def negative_scale():
        return beside_math([(2, 3, 20, 8)] * 3, torch.float64, True, is_causal=True, scale=-1 / 0.0001)

    def masked_rows():
        return beside_math([(2, 3, 8, 4)] * 3, torch.float32, True, torch.arange(8)[:, None].expand(8, 8) > 3)

    def masked_nan():
        q, k, v = torch.randn(3, 2, 3, 8, 4)
        mask = torch.arange(8) < 5
        clean = ours(q, k, v, attn_mask=mask)
        k[:, :, 5:], v[:, :, 5:] = math.nan, math.nan
        return equal(ours(q, k, v, attn_mask=mask), clean)

    def one_column_with_a_stride():
        q, k, v = (torch.randn(2, 3, 8, 5)[..., :1] for _ in range(3))
        return apart(ours(q, k, v), math_path(q, k, v))

    def repeated_keys():
        q, k, v = torch.randn(2, 3, 8, 4), torch.randn(4).expand(2, 3, 9, 4), torch.randn(4).expand(2, 3, 9, 4)
        mask = torch.randn(9, 8).t()
        return apart(ours(q, k, v, attn_mask=mask), math_path(q, k, v, attn_mask=mask))

    def reruns():
        tensors = [torch.randn(2, 3, 130, 16, requires_grad=True) for _ in range(3)]
        runs = [torch.autograd.grad(ours(*tensors, is_causal=True).sum(), tensors) for _ in range(100)]
        return next(filter(None, (equal(a, b) for run in runs for a, b in zip(run, runs[0]))), None)

    def no_keys():
        return equal(ours(torch.randn(2, 3, 4), torch.randn(2, 0, 4), torch.randn(2, 0, 5)), torch.zeros(2, 3, 5))

    expect("127055: whole blocks of keys are masked in a row", whole_blocks_masked)
    expect("105190: negative scale", negative_scale)
    expect("41508: rows without a key", masked_rows)
    expect("101967: NaN in masked keys and values", masked_nan)
    expect("head_dim 1 whose stride is not 1", one_column_with_a_stride)
    expect("a transposed mask, keys and values of stride 0", repeated_keys)
    expect("100 reruns of the gradients have equal bits", reruns)
    expect("141219: no keys at all", no_keys)
    return tally


def run(long):
    batches = (2, 12) if long else (2,)
    return [grid(batches), masks((1, 8) if long else (2,)), named()]
