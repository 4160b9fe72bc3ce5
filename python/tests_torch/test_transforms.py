"""What torch does around an operator: derivatives, tracing, compiling, exporting, taking its place."""

import doctest

import pytest
import qkv.torch
import torch
import torch.nn.functional as functional
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

OURS = qkv.torch.scaled_dot_product_attention


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def cases():
    q, k, v = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 3)
    allowed = torch.rand(3, 5) > 0.4
    allowed[0] = False
    keep = torch.rand(2, 2, 3, 5) > 0.5
    return {
        "plain": ((q, k, v), {}),
        "causal": ((q, k, v), {"is_causal": True, "scale": -0.7}),
        "bool mask": ((q, k, v), {"attn_mask": allowed}),
        "float mask": ((q, k, v, draw(2, 1, 3, 5)), {}),
        "grouped": ((draw(1, 4, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 3)), {"enable_gqa": True}),
        "5-D": ((draw(2, 3, 2, 3, 2), draw(2, 1, 2, 3, 2), draw(1, 3, 1, 3, 2), draw(3, 1, 3, 3)), {}),
        "exact dropout": ((q, k, v), {"dropout_p": 0.4, "exact_dropout": True}),
    }


@pytest.mark.parametrize("name", cases())
def test_first_and_second_derivatives(name):
    tensors, options = cases()[name]

    def function(*given):
        torch.manual_seed(1)
        return OURS(*given, **options)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors, fast_mode=True)


def test_third_derivatives():
    q, k, v = draw(2, 3), draw(4, 3), draw(4, 2)

    def gradient(*tensors):
        return torch.autograd.grad(OURS(*tensors, is_causal=True).pow(2).sum(), tensors, create_graph=True)

    assert gradgradcheck(gradient, (q, k, v), fast_mode=True)


def test_what_has_no_derivative_says_so():
    q = draw(3, 4)
    with pytest.raises(NotImplementedError, match="no second derivatives with seeded dropout"):
        gradgradcheck(lambda t: OURS(t, t, t, dropout_p=0.5), (q,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        dual = forward_ad.make_dual(q.detach(), torch.ones_like(q))
        OURS(dual, dual, dual)
    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives .* use vjp or jacrev"):
            transform(lambda t: OURS(t, t, t).sum())(q.detach())
    with pytest.raises(NotImplementedError, match="no second derivatives with seeded dropout"):
        func = torch.func.grad(lambda t: OURS(t, t, t, dropout_p=0.5).pow(2).sum())
        torch.func.grad(lambda t: func(t).sum())(q.detach())


@pytest.mark.parametrize("name", cases())
def test_torch_func_gives_torchs_derivatives(name):
    """grad, vjp, jacrev once and twice, and vmap of and under them, against the same of torch's function."""
    tensors, options = cases()[name]
    tensors = tuple(t.detach() for t in tensors)

    def using(function):
        def value(*given):
            torch.manual_seed(1)
            return function(*given, **options)

        def loss(*given):
            return value(*given).pow(2).sum()

        every = tuple(range(len(tensors)))
        direction = torch.ones_like(value(*tensors))
        many = [torch.stack([t, 2 * t]) for t in tensors]
        yield torch.func.grad(loss, every)(*tensors)
        yield torch.func.vjp(value, *tensors)[1](direction)
        yield torch.func.jacrev(value)(*tensors)
        yield torch.func.jacrev(torch.func.jacrev(loss))(*tensors)
        yield torch.func.jacrev(torch.func.grad(loss), argnums=len(tensors) - 1)(*tensors)
        yield torch.vmap(torch.func.grad(loss, every), randomness="same")(*many)
        yield torch.func.grad(lambda *given: torch.vmap(value, randomness="same")(*given).pow(2).sum(), every)(*many)

    with sdpa_kernel(SDPBackend.MATH):
        theirs = list(using(functional.scaled_dot_product_attention if "exact_dropout" not in options else formula))
    torch.testing.assert_close(list(using(OURS)), theirs)


def formula(query, key, value, dropout_p, exact_dropout):
    """torch's math path, for which dropout is drawn at once and not for each index."""
    weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
    keep = torch.empty(weights.shape, dtype=torch.float32).bernoulli_(1 - dropout_p)
    return weights * keep / (1 - dropout_p) @ value


@pytest.mark.parametrize("seeded", [False, True])
def test_vmap_draws_dropout_as_it_is_told(seeded):
    x = torch.ones(3, 8, 4)

    def mapped(randomness):
        return torch.vmap(lambda t: OURS(t, t, t, dropout_p=0.5, exact_dropout=not seeded), randomness=randomness)(x)

    same, different = mapped("same"), mapped("different")
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        mapped("error")


def test_the_context_of_exact_dropout_and_the_compiler():
    q = draw(2, 3, 4).detach()

    def call(**options):
        return OURS(q, q, q, dropout_p=0.5, **options)

    def inside():
        with qkv.torch.exact_dropout():
            return call()

    def drawn(function):
        torch.manual_seed(3)
        return function()

    exact, seeded = drawn(lambda: call(exact_dropout=True)), drawn(call)
    assert not torch.equal(exact, seeded)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(drawn(compiled), seeded)
    with qkv.torch.exact_dropout():  # around it: compiled again
        assert torch.equal(drawn(compiled), exact)
    assert torch.equal(drawn(compiled), seeded)
    assert torch.equal(drawn(torch.compile(inside, backend="aot_eager")), exact)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ContextVar"):
        torch.compile(inside, fullgraph=True, backend="aot_eager")()


def test_opcheck():
    q, k, v, mask = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 3), draw(2, 1, 3, 5)
    seed = torch.tensor(5)
    keep = torch.rand(2, 2, 3, 5) > 0.5
    for arguments in [(q, k, v, None, None, None, 0.0, False, None, False),
                      (q, k, v, mask, None, None, 0.0, False, 0.5, False),
                      (q, k, v, mask > 0, keep, None, 0.5, False, None, False),
                      (q, k, v, None, None, seed, 0.5, True, None, False)]:
        torch.library.opcheck(torch.ops.qkv.attention.default, arguments)
    out, lse = torch.ops.qkv.attention(q, k, v, mask, None, None, 0.0, False, None, False)
    torch.library.opcheck(torch.ops.qkv.attention_backward.default,
                          (torch.ones_like(out), q, k, v, mask, None, None, out.detach(), lse, 0.0, False, None, True))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": "float"}, {"mask": "bool"}, {"dropout_p": 0.5},
                                     {"dropout_p": 0.5, "exact_dropout": True}], ids=str)
def test_compile_sees_one_graph_and_gives_the_same_bits(options):
    tensors = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 3)
    options = dict(options)
    mask = draw(3, 5)
    if kind := options.pop("mask", None):
        options["attn_mask"] = mask if kind == "float" else mask > 0

    def function(q, k, v):
        return OURS(q * 2, k, v, **options).sin()

    torch._dynamo.reset()
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(2)
        out = call(*tensors)
        results.append((out, *torch.autograd.grad(out.sum(), tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_export_with_free_sizes():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return OURS(q, k, v, is_causal=True)

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    sizes = {0: batch, 2: tokens}
    tensors = tuple(draw(2, 2, 5, 4).detach() for _ in range(3))
    exported = torch.export.export(Layer(), tensors, dynamic_shapes=(sizes, sizes, sizes))
    for shape in ((2, 2, 5, 4), (3, 2, 9, 4)):
        q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
        assert torch.equal(exported.module()(q, k, v), OURS(q, k, v, is_causal=True))


@pytest.mark.filterwarnings("error")
def test_vmap_calls_once_for_each_index():
    q, k, v = (draw(2, 2, 4, 5).detach() for _ in range(3))
    torch.testing.assert_close(torch.vmap(OURS)(q, k, v), OURS(q, k, v))
    torch.testing.assert_close(torch.vmap(torch.vmap(OURS))(q, k, v), OURS(q, k, v))
    mapped = torch.vmap(OURS, (1, None, 0), 2)(q, k[0, 0], v[:, 0])
    torch.testing.assert_close(mapped, torch.stack([OURS(q[:, i], k[0, 0], v[i, 0]) for i in range(2)], 2))
    with pytest.raises(ValueError, match="vmap over a dimension of size 0"):
        torch.vmap(OURS)(q[:0], k[:0], v[:0])


def test_in_the_place_of_torchs_function():
    torch_function = functional.scaled_dot_product_attention
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    before, _ = layer(x, x, x, need_weights=False)
    calls = []

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    with qkv.torch.use():
        assert functional.scaled_dot_product_attention is not torch_function
        with Counting():
            during, _ = layer(x, x, x, need_weights=False)
        # What is not ours goes to torch's.
        with pytest.raises(TypeError, match="query"):
            functional.scaled_dot_product_attention(x.numpy(), x, x)
        meta = torch.empty(2, 3, device="meta")
        assert functional.scaled_dot_product_attention(meta, meta, meta).device.type == "meta"
    assert functional.scaled_dot_product_attention is torch_function
    assert torch_function not in calls
    torch.testing.assert_close(before, during)


def test_the_examples_in_the_docstrings():
    found = doctest.testmod(qkv.torch)
    assert found.failed == 0 and found.attempted > 5
