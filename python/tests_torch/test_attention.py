"""qkv.torch.scaled_dot_product_attention beside torch's own math path in float64."""

import itertools

import pytest
import qkv.torch
import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

OURS = qkv.torch.scaled_dot_product_attention
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def theirs(*tensors, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(*tensors, **options)


def draw(*shape, dtype=torch.float64, grad=True):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def with_gradients(function, tensors, options):
    """Output and gradients, as float64; the tensors are those of `tensors` and a float mask."""
    leaves = [t for t in (*tensors, options.get("attn_mask")) if t is not None and t.requires_grad]
    out = function(*tensors, **options)
    direction = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).reshape(out.shape).to(out.dtype)
    return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaves, direction))]


def compare(tensors, options, exact=False):
    dtype = tensors[0].dtype
    wide = [t.detach().double().requires_grad_() for t in tensors]
    wide_options = dict(options)
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        wide_options["attn_mask"] = mask.detach().double().requires_grad_(mask.requires_grad)
    torch.manual_seed(1)
    expected = with_gradients(theirs, wide, wide_options)
    torch.manual_seed(1)
    given = with_gradients(OURS, tensors, options | ({"exact_dropout": True} if exact else {}))
    for ours, reference in zip(given, expected, strict=True):
        assert ours.shape == reference.shape
        floor = TOLERANCE[dtype] * max(1.0, reference.abs().max().item())
        torch.testing.assert_close(ours, reference, rtol=TOLERANCE[dtype], atol=floor)


SHAPES = {
    "2-D": ((5, 8), (7, 8), (7, 6)),
    "3-D": ((4, 5, 8), (4, 7, 8), (4, 7, 8)),
    "4-D": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6)),
    "5-D": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 6)),
    "one head for all": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 6)),
    "query broadcast": ((4, 5, 8), (3, 4, 7, 8), (3, 4, 7, 8)),
    "crosswise": ((2, 1, 4, 5, 8), (1, 3, 4, 7, 8), (2, 3, 1, 7, 6)),
    "one query": ((2, 4, 1, 8), (2, 4, 7, 8), (2, 4, 7, 8)),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes_and_types(shapes, dtype):
    torch.manual_seed(0)
    tensors = [draw(*shape, dtype=dtype) for shape in shapes]
    for options in ({}, {"is_causal": True, "scale": -0.3}):
        compare(tensors, options)


@pytest.mark.parametrize("shapes", [((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)),
                                    ((2, 3, 4, 5, 8), (2, 3, 1, 7, 8), (2, 3, 1, 7, 6))])
def test_grouped_heads(shapes):
    torch.manual_seed(2)
    tensors = [draw(*shape) for shape in shapes]
    compare(tensors, {"enable_gqa": True})
    compare(tensors, {"enable_gqa": True, "attn_mask": draw(shapes[0][-3], 5, 7)})


MASKS = [(7,), (5, 7), (5, 1), (4, 5, 7), (2, 1, 5, 7), (2, 4, 1, 7), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_float_masks_and_their_gradients(shape):
    torch.manual_seed(3)
    tensors = [draw(2, 4, 5, 8), draw(2, 4, 7, 8), draw(2, 4, 7, 6)]
    compare(tensors, {"attn_mask": draw(*shape)})
    compare([t.detach().float().requires_grad_() for t in tensors], {"attn_mask": draw(*shape, dtype=torch.float32)})


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (3, 1, 5, 7), (2, 1, 1, 5, 1), (2, 3, 4, 5, 7)], ids=str)
def test_masks_of_five_dimensions(shape):
    torch.manual_seed(4)
    tensors = [draw(2, 3, 4, 5, 8), draw(2, 3, 4, 7, 8), draw(2, 3, 4, 7, 6)]
    if shape == (2, 1, 5, 7):
        shape = (3, 4, 5, 7)
    compare(tensors, {"attn_mask": draw(*shape)})


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_boolean_masks_and_empty_rows(shape):
    torch.manual_seed(5)
    mask = torch.rand(shape) > 0.3
    mask[(0,) * (mask.dim() - 1)] = False
    compare([draw(2, 4, 5, 8), draw(2, 4, 7, 8), draw(2, 4, 7, 6)], {"attn_mask": mask})


def test_a_mask_of_minus_infinity_leaves_zeros():
    q = draw(3, 4)
    mask = torch.zeros(3, 3, dtype=torch.float64)
    mask[1] = -torch.inf
    out = OURS(q, q, q, mask)
    out.sum().backward()
    assert (out[1] == 0).all() and q.grad.isfinite().all()


@pytest.mark.parametrize("arrange", [
    lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]], lambda t: torch.cat([t, t], 0)[::2].expand(t.shape),
    lambda t: t[:1].expand(t.shape)], ids=["[B, T, H, D]", "last stride", "sliced", "stepped", "expanded"])
def test_strides(arrange):
    torch.manual_seed(6)
    tensors = [arrange(draw(2, 4, 5, 8, grad=False)).requires_grad_() for _ in range(3)]
    plain = [t.detach().contiguous().requires_grad_() for t in tensors]
    for given, expected in zip(with_gradients(OURS, tensors, {}), with_gradients(OURS, plain, {})):
        assert torch.equal(given, expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
def test_exact_dropout_is_torchs(dtype, p):
    torch.manual_seed(7)
    for shapes in (SHAPES["4-D"], SHAPES["query broadcast"]):
        compare([draw(*shape, dtype=dtype) for shape in shapes], {"dropout_p": p, "is_causal": True}, exact=True)


def test_the_context_of_exact_dropout():
    q = draw(3, 4)
    results = []
    for inside, argument in itertools.product((False, True), (None, False, True)):
        torch.manual_seed(8)
        with qkv.torch.exact_dropout(inside):
            results.append(OURS(q, q, q, dropout_p=0.5, exact_dropout=argument))
    exact = [results[i] for i in (2, 3, 5)]
    seeded = [results[i] for i in (0, 1, 4)]
    assert all(torch.equal(exact[0], t) for t in exact) and all(torch.equal(seeded[0], t) for t in seeded)
    assert not torch.equal(exact[0], seeded[0])


def test_seeded_dropout_is_drawn_again_by_backward():
    torch.manual_seed(9)
    q, k, v = draw(2, 3, 2, 6, 4), draw(2, 1, 2, 50, 4), draw(1, 3, 2, 50, 4)

    def seeded(*tensors):
        torch.manual_seed(10)
        return OURS(*tensors, dropout_p=0.4)

    assert torch.equal(seeded(q, k, v), seeded(q, k, v))
    assert torch.autograd.gradcheck(seeded, (q, k, v), fast_mode=True)
    # Every sequence of the batch draws for itself.
    ones = torch.ones(2, 3, 2, 6, 4)
    drawn = OURS(ones, ones, ones, dropout_p=0.5)
    assert len({tuple(sequence.flatten().tolist()) for sequence in drawn.flatten(0, 1)}) == 6


def test_a_nan_at_a_masked_place_does_not_leak():
    torch.manual_seed(11)
    q, k, v = (draw(1, 2, 4, 8) for _ in range(3))
    clean = with_gradients(OURS, (q, k, v), {"attn_mask": torch.arange(4) < 3})
    for t in (k, v):
        t.data[:, :, 3] = torch.nan
    dirty = with_gradients(OURS, (q, k, v), {"attn_mask": torch.arange(4) < 3})
    for before, after in zip(clean, dirty):
        assert torch.equal(before, after)


def test_autocast():
    q, k, v = (draw(1, 2, 4, 8, dtype=torch.float32) for _ in range(3))
    mask = torch.zeros(4, 4)
    with torch.autocast("cpu"):
        out = OURS(q, k, v, mask)
        assert out.dtype == functional.scaled_dot_product_attention(q, k, v, mask).dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_one_thread_or_several_give_the_same_bits():
    q = draw(2, 4, 300, 32, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(with_gradients(OURS, (q, q, q), {"is_causal": True}))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


X = torch.zeros(2, 3, 4)
BAD = {
    "device": (lambda: OURS(X.to("meta"), X, X), ValueError, "^query lies on meta; expected the CPU"),
    "mask device": (lambda: OURS(X, X, X, torch.zeros(3, 3, device="meta")), ValueError, "^attn_mask lies on meta"),
    "integers": (lambda: OURS(X.long(), X.long(), X.long()), TypeError, "^query has type torch.int64"),
    "types": (lambda: OURS(X, X.double(), X), TypeError, "^key has type torch.float64"),
    "mask type": (lambda: OURS(X, X, X, torch.zeros(3, 3, dtype=torch.int32)), TypeError, "^attn_mask has type"),
    "wide mask": (lambda: OURS(X, X, X, torch.zeros(3, 3).double()), TypeError, "^attn_mask has type torch.float64"),
    "both masks": (lambda: OURS(X, X, X, torch.ones(3, 3) > 0, is_causal=True), ValueError, "^attn_mask is given"),
    "width": (lambda: OURS(X, X[..., :3], X), ValueError, r"^key has shape \(2, 3, 3\); expected the last size"),
    "tokens": (lambda: OURS(X, X, X[:, :2]), ValueError, r"^value has shape \(2, 2, 4\); expected as many tokens"),
    "rank": (lambda: OURS(X[0, 0], X, X), ValueError, r"^query has shape \(4,\); expected at least 2"),
    "batch": (lambda: OURS(X, torch.zeros(5, 3, 4), X), ValueError, "do not broadcast"),
    "heads": (lambda: OURS(torch.zeros(4, 3, 4), X, X), ValueError, "do not broadcast"),
    "gqa": (lambda: OURS(torch.zeros(3, 3, 4), X, X, enable_gqa=True), ValueError, "^key and value have 2 and 2 heads"),
    "mask shape": (lambda: OURS(X, X, X, torch.zeros(5, 3, 3)), ValueError, "^attn_mask has shape"),
    "mask size": (lambda: OURS(X, X, X, torch.zeros(3, 2)), ValueError, "shape"),
    "scale": (lambda: OURS(X, X, X, scale=float("inf")), ValueError, "^scale is inf"),
    "dropout": (lambda: OURS(X, X, X, dropout_p=1.5), ValueError, "dropout"),
    "array": (lambda: OURS(X.numpy(), X, X), TypeError, "^query is a ndarray; expected a torch.Tensor$"),
    "array of keys": (lambda: OURS(X, X.numpy(), X), TypeError, "^key is a ndarray; expected a torch.Tensor$"),
    "no value": (lambda: OURS(X, X, None), TypeError, "^value is a NoneType; expected a torch.Tensor$"),
    "no key": (lambda: OURS(X, None, X), TypeError, "^key is a NoneType; expected a torch.Tensor$"),
    "array as mask": (lambda: OURS(X, X, X, X.numpy()), TypeError, "^attn_mask is a ndarray; expected a torch.Tensor$"),
    "array and gradient": (lambda: OURS(draw(2, 3), X.numpy(), X), TypeError, "^key is a ndarray"),
    "text for scale": (lambda: OURS(X, X, X, scale="1"), TypeError, "^scale is a str; expected a number$"),
    "text for dropout": (lambda: OURS(X, X, X, dropout_p="1"), TypeError, "^dropout_p is a str; expected a number$"),
    "number for causal": (lambda: OURS(X, X, X, is_causal=2), TypeError, "^is_causal is a int; expected True or False$"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_by_name(name):
    call, exception, message = BAD[name]
    with pytest.raises(exception, match=message):
        call()


def test_a_tensor_that_requires_grad_is_refused_where_it_would_be_lost():
    with pytest.raises(BufferError, match="^q requires grad, which would be lost here"):
        qkv.attention(draw(2, 3), draw(2, 3), draw(2, 3))
    plain = draw(2, 3, grad=False)
    low = plain.bfloat16()
    assert torch.from_dlpack(qkv.attention(low, low, low)).dtype == torch.bfloat16
    out = torch.empty_like(plain)
    assert qkv.attention(plain, plain, plain, out=out) is out
    torch.testing.assert_close(out, theirs(plain, plain, plain))


def test_what_is_filled_must_be_nothing_that_autograd_needs():
    plain = draw(3, 4, grad=False)
    leaf, inner = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True), draw(3, 4).exp()
    for out in (leaf, inner):
        before = out.detach().clone()
        with pytest.raises(BufferError, match="^out requires grad, and what is filled does not support automatic"):
            qkv.attention(plain, plain, plain, out=out)
        assert torch.equal(out, before)
    # Saved for backward without a gradient of its own: backward must notice, as after torch's own writes.
    saved, factor = torch.ones(3, 4, dtype=torch.float64), draw(3, 4)
    product = (saved * factor).sum()
    qkv.attention(plain, plain, plain, out=saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        counted_by_nobody = torch.empty(3, 4, dtype=torch.float64)
        qkv.attention(plain, plain, plain, out=counted_by_nobody)
    torch.testing.assert_close(counted_by_nobody, saved)
