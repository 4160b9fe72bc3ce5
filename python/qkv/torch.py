"""PyTorch's scaled_dot_product_attention, computed by qkv.

    from qkv.torch import scaled_dot_product_attention

takes what torch.nn.functional's takes (torch 2.15) and means the same: autograd, torch.compile and torch.export see
through it. What differs is listed in docs/python.md. `use()` puts it in torch's place for code that is already there.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _core

__all__ = ["exact_dropout", "register_transformers", "scaled_dot_product_attention", "use"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_torch_attention = torch.nn.functional.scaled_dot_product_attention
_exact_dropout = contextvars.ContextVar("qkv_exact_dropout", default=False)


# Shapes: [.., Hq, L, E], [.., H, S, E], [.., H, S, Ev] -> [.., Hq, L, Ev], the leading sizes broadcast.


def _text(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _lead(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> torch.Size:
    """The output's sizes before the last two. Raises ValueError naming the argument that does not fit."""
    q, k, v = query.shape, key.shape, value.shape
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2:
            raise ValueError(f"{name} has shape {_text(tensor)}; expected at least 2 dimensions")
    if k[-1] != q[-1]:
        raise ValueError(f"key has shape {_text(key)}; expected the last size of query, {q[-1]}")
    if v[-2] != k[-2]:
        raise ValueError(f"value has shape {_text(value)}; expected as many tokens as key, {k[-2]}")
    if q[:-2] == k[:-2] == v[:-2]:
        return q[:-2]
    if enable_gqa:
        if min(query.dim(), key.dim(), value.dim()) < 3:
            raise ValueError("enable_gqa needs a dimension of heads in query, key and value")
        if k[-3] != v[-3] or k[-3] == 0 or q[-3] % k[-3] != 0:
            raise ValueError(
                f"key and value have {k[-3]} and {v[-3]} heads; expected one number that divides query's {q[-3]}")
        try:
            return torch.Size((*torch.broadcast_shapes(q[:-3], k[:-3], v[:-3]), q[-3]))
        except RuntimeError as error:
            raise ValueError(f"query {_text(query)}, key {_text(key)} and value {_text(value)}: {error}") from None
    try:
        return torch.broadcast_shapes(q[:-2], k[:-2], v[:-2])
    except RuntimeError:
        raise ValueError(
            f"query {_text(query)}, key {_text(key)} and value {_text(value)} have leading sizes that do not broadcast"
        ) from None


def _key_lead(lead: torch.Size, key: Tensor, value: Tensor) -> tuple[int, ...]:
    """The leading sizes of the gradients of key and value before they are summed: with heads of their own."""
    heads = (tensor.shape[-3] if tensor.dim() > 2 else 1 for tensor in (key, value))
    return (*lead[:-1], max(heads)) if lead else ()


def _check(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value), ("attn_mask", attn_mask)):
        if tensor is None and name == "attn_mask":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} lies on {tensor.device}; expected the CPU")
    if query.dtype not in _FLOATS:
        raise TypeError(f"query has type {query.dtype}; expected float32, bfloat16, float16 or float64")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} has type {tensor.dtype}; expected that of query, {query.dtype}")
    if attn_mask is not None:
        if is_causal:
            raise ValueError("attn_mask is given and is_causal is True; expected one of them")
        if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
            raise TypeError(f"attn_mask has type {attn_mask.dtype}; expected bool, float32 or {query.dtype}")


# The numbers.


def _forward(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, keep: Tensor | None,
             seed: Tensor | None, dropout_p: float, is_causal: bool, scale: float | None,
             enable_gqa: bool) -> tuple[Tensor, Tensor]:
    # A view with torch's lazy minus is exported as the memory it is a view of.
    query, key, value = query.resolve_neg(), key.resolve_neg(), value.resolve_neg()
    attn_mask = attn_mask if attn_mask is None else attn_mask.resolve_neg()
    out, lse = _outputs(query, key, value, enable_gqa)
    _core.torch_forward(query, key, value, attn_mask, keep, out, lse, dropout_p, 0 if seed is None else int(seed),
                        is_causal, scale, enable_gqa, torch.get_num_threads())
    return out, lse


def _outputs(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    rows = (*_lead(query, key, value, enable_gqa), query.shape[-2])
    sums = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty((*rows, value.shape[-1])), query.new_empty(rows, dtype=sums)


def _backward(grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None,
              keep: Tensor | None, seed: Tensor | None, out: Tensor, lse: Tensor, dropout_p: float, is_causal: bool,
              scale: float | None, mask_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and, where it is wanted, the mask (else something empty)."""
    grad_output, query, key, value = (t.resolve_neg() for t in (grad_output, query, key, value))
    attn_mask = attn_mask if attn_mask is None else attn_mask.resolve_neg()
    lead = out.shape[:-2]
    dq = query.new_empty((*lead, *query.shape[-2:]))
    key_lead = _key_lead(lead, key, value)
    dk = key.new_empty((*key_lead, *key.shape[-2:]))
    dv = value.new_empty((*key_lead, *value.shape[-2:]))
    mask, dm = attn_mask, None
    if mask is not None and mask_grad:
        if len(lead) > 2:
            mask = mask.expand(*lead, query.shape[-2], key.shape[-2])
        mask = mask.contiguous()
        dm = torch.empty_like(mask)
    _core.torch_backward(grad_output, query, key, value, mask, keep, out, lse, dq, dk, dv, dm, dropout_p,
                         0 if seed is None else int(seed), is_causal, scale, torch.get_num_threads())
    return (_summed(dq, query), _summed(dk, key), _summed(dv, value),
            query.new_empty(0) if attn_mask is None or dm is None else _summed(dm, attn_mask))


def _summed(gradient: Tensor, of: Tensor) -> Tensor:
    return gradient if gradient.shape == of.shape else gradient.sum_to_size(of.shape)


def _formula(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, keep: Tensor | None,
             dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    """The definition in torch's own operations, for what is differentiated twice."""
    groups = query.shape[-3] // key.shape[-3] if query.dim() > 2 and key.dim() > 2 and key.shape[-3] > 1 else 1
    key, value = (t.repeat_interleave(groups, -3) if groups > 1 else t for t in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    allowed = None
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask
        allowed = attn_mask > float("-inf")
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if allowed is not None:
        weights = weights.masked_fill(~allowed, 0.0)
    if keep is not None:
        weights = weights * keep / (1 - dropout_p) if dropout_p < 1 else weights * 0
    return weights @ value


# The operators, for autograd and the compiler.


_attention = torch.library.custom_op("qkv::attention", _forward, mutates_args=())


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, keep: Tensor | None, seed: Tensor | None,
      dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    return _outputs(query, key, value, enable_gqa)


_attention_backward = torch.library.custom_op("qkv::attention_backward", _backward, mutates_args=())


@_attention_backward.register_fake
def _(grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, keep: Tensor | None,
      seed: Tensor | None, out: Tensor, lse: Tensor, dropout_p: float, is_causal: bool, scale: float | None,
      mask_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dm = attn_mask.new_empty(attn_mask.shape) if mask_grad and attn_mask is not None else query.new_empty(0)
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), dm


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, attn_mask, keep, seed, ctx.dropout_p, ctx.is_causal, ctx.scale, _ = inputs
    ctx.save_for_backward(query, key, value, attn_mask, keep, seed, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_output: Tensor | None, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 10
    query, key, value, attn_mask, keep, seed, out, lse = ctx.saved_tensors
    mask_grad = bool(ctx.needs_input_grad[3])
    # The operator where this is traced or differentiated itself.
    tensors = (grad_output, query, key, value, attn_mask)
    function: Any = _backward
    if _transformed():
        function = _DifferentiableBackward.apply
    elif not _simple(*tensors) or _differentiated(*tensors):
        function = _attention_backward
    dq, dk, dv, dm = function(grad_output, query, key, value, attn_mask, keep, seed, out, lse,
                              ctx.dropout_p, ctx.is_causal, ctx.scale, mask_grad)
    return dq, dk, dv, dm if mask_grad else None, None, None, None, None, None, None


_attention.register_autograd(_gradients, setup_context=_setup)


def _each(operator: Any, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
    """vmap's rule: one call for each index. (Dropout's seed would not stay the same over a batch.)"""
    if info.batch_size == 0:
        raise ValueError("qkv.torch: vmap over a dimension of size 0; expected at least 1")
    results = [operator(*(t if dim is None else t.select(dim, i) for t, dim in zip(inputs, in_dims)))
               for i in range(info.batch_size)]
    return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])


_attention.register_vmap(functools.partial(_each, _attention))
_attention_backward.register_vmap(functools.partial(_each, _attention_backward))


class _Recorded(torch.autograd.Function):
    """The numbers, for autograd alone: without the operator's dispatch and without binding arguments to a signature, as
    torch does where setup_context stands apart; each of these costs more than a small attention."""

    backward = staticmethod(_gradients)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _setup(ctx, inputs, output)
        return output


class _Differentiable(torch.autograd.Function):
    """What torch.func goes through."""

    generate_vmap_rule = True
    setup_context = staticmethod(_setup)
    backward = staticmethod(_gradients)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _forward(*inputs) if _simple(*inputs[:4]) else _attention(*inputs)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_output, query, key, value, attn_mask, keep, seed, _, _, ctx.dropout_p, ctx.is_causal, ctx.scale, mask_grad = inputs
    ctx.drawn = seed is not None
    ctx.results = 4 if mask_grad else 3
    ctx.save_for_backward(grad_output, query, key, value, attn_mask, keep)


def _second_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Through the formula, in memory that grows with L·S; torch differentiates that as often as it likes."""
    if ctx.drawn:
        raise NotImplementedError("qkv.torch: no second derivatives with seeded dropout; use exact_dropout")
    *tensors, keep = ctx.saved_tensors
    leaves = [t for t in tensors if t is not None and t.is_floating_point()]
    bool_mask = tensors[4] if len(leaves) < 5 else None

    def first(grad_output: Tensor, *of: Tensor) -> Any:
        def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = bool_mask) -> Tensor:
            return _formula(query, key, value, mask, keep, ctx.dropout_p, ctx.is_causal, ctx.scale)

        return torch.func.vjp(formula, *of)[1](grad_output)[: ctx.results]

    primal, pull = torch.func.vjp(first, *leaves)
    second = pull(tuple(torch.zeros_like(p) if dd is None else dd for p, dd in zip(primal, grads)))
    return (*second, *(None,) * (13 - len(second)))


_attention_backward.register_autograd(_second_gradients, setup_context=_setup_backward)


class _DifferentiableBackward(torch.autograd.Function):
    """The gradients' operator for torch.func."""

    generate_vmap_rule = True
    setup_context = staticmethod(_setup_backward)
    backward = staticmethod(_second_gradients)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _backward(*inputs) if _simple(*inputs[:5]) else _attention_backward(*inputs)


# The function.


def _transformed() -> bool:
    """Whether torch.func's transforms look on. (Not where the compiler traces them: it knows the operators.)"""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


def _simple(*tensors: Tensor | None) -> bool:
    """Whether the numbers can be computed right here, because nobody traces or transforms."""
    if (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
            or torch._C._are_functorch_transforms_active()):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_neg()):
            return False
    return True


def _differentiated(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _draw_keep(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool, dropout_p: float) -> Tensor:
    """torch's own draw: bernoulli_ on a tensor of the weights' shape."""
    shape = (*_lead(query, key, value, enable_gqa), query.shape[-2], key.shape[-2])
    return query.new_empty(shape, dtype=torch.float32).bernoulli_(1 - dropout_p).bool()


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    exact_dropout: bool | None = None,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention on the CPU.

        query [.., Hq, L, E]   key [.., H, S, E]   value [.., H, S, Ev]   ->   [.., Hq, L, Ev]

    float32, bfloat16, float16 or float64; leading sizes broadcast. attn_mask broadcasts to [.., Hq, L, S]: bool (True =
    takes part) or float (added). is_causal is the top-left triangle. scale: any finite number, default 1/√E. enable_gqa:
    H divides Hq. Differentiable in query, key, value and a float mask, twice where dropout is not seeded.

    dropout_p: seeded from torch's generator, in memory that grows with L. exact_dropout: draw torch's own mask instead,
    so that the result is torch's under the same torch.manual_seed; None: as the context `exact_dropout()` says.

    >>> import torch, qkv.torch
    >>> x = torch.eye(3)
    >>> qkv.torch.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.0)[1]
    tensor([0.5000, 0.5000, 0.0000])
    """
    if torch.overrides.has_torch_function((query, key, value, attn_mask)):
        return torch.overrides.handle_torch_function(
            scaled_dot_product_attention, (query, key, value, attn_mask), query, key, value, attn_mask, dropout_p,
            is_causal, scale, enable_gqa, exact_dropout=exact_dropout)
    try:
        return _call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, exact_dropout)
    except (ValueError, TypeError, BufferError, AttributeError) as error:
        # The library's words for its four-dimensional views; these name the arguments that were given.
        _check(query, key, value, attn_mask, is_causal)
        _lead(query, key, value, enable_gqa)
        if isinstance(error, TypeError):
            _check_settings(dropout_p, is_causal, scale, enable_gqa)
        raise


def _check_settings(dropout_p: float, is_causal: bool, scale: float | None, enable_gqa: bool) -> None:
    """Looks for what made a call fail."""
    for name, number in (("dropout_p", dropout_p), ("scale", 1.0 if scale is None else scale)):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(f"{name} is a {type(number).__name__}; expected a number") from None
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a {type(flag).__name__}; expected True or False") from None


def _call(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool,
          scale: float | None, enable_gqa: bool, exact_dropout: bool | None) -> Tensor:
    """The way to the numbers that suits who looks on: nobody, autograd, torch.func or the compiler."""
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = (t.to(low) if t.dtype != torch.float64 else t for t in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(query.dtype)
    if attn_mask is not None and query.dtype == torch.float64 and attn_mask.dtype == torch.float32:
        attn_mask = attn_mask.to(torch.float64)
    keep = seed = None
    if dropout_p > 0:
        if _exact_dropout.get() if exact_dropout is None else exact_dropout:
            _check(query, key, value, attn_mask, is_causal)
            keep = _draw_keep(query, key, value, enable_gqa, dropout_p)
        else:
            seed = torch.randint(2**63 - 1, (), dtype=torch.int64)
    tensors = (query, key, value, attn_mask)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        raise NotImplementedError("qkv.torch: no forward-mode derivatives (jvp, jacfwd, hessian); use vjp or jacrev, once "
                                  "or twice, or torch's own function")
    if not _simple(*tensors):
        _check(query, key, value, attn_mask, is_causal)
        operator: Any = _Differentiable.apply if _transformed() else _attention
        return operator(query, key, value, attn_mask, keep, seed, float(dropout_p), is_causal, scale, enable_gqa)[0]
    if _differentiated(*tensors):
        return _Recorded.apply(query, key, value, attn_mask, keep, seed, dropout_p, is_causal, scale, enable_gqa)[0]
    return _core.torch_forward(query, key, value, attn_mask, keep, None, None, dropout_p,
                               0 if seed is None else int(seed), is_causal, scale, enable_gqa,
                               torch.get_num_threads())


@contextlib.contextmanager
def exact_dropout(on: bool = True) -> Iterator[None]:
    """Within it, dropout draws torch's own mask where a call does not say otherwise.

    Around a compiled function, too. Inside one it breaks the graph, which fullgraph=True refuses: give the call
    exact_dropout=True there.

    >>> import torch, qkv.torch
    >>> x = torch.ones(4, 8)
    >>> with qkv.torch.exact_dropout():
    ...     ours = qkv.torch.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    """
    token = _exact_dropout.set(on)
    try:
        yield
    finally:
        _exact_dropout.reset(token)


def _in_place_of_torch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                       dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                       enable_gqa: bool = False) -> Tensor:
    """Ours for plain CPU tensors of float types, torch's for all others (devices, nested tensors)."""
    ours = all(
        isinstance(t, Tensor) and t.device.type == "cpu" and t.layout == torch.strided and t.dtype in _FLOATS for t in (query, key, value))
    function = scaled_dot_product_attention if ours else _torch_attention
    return function(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


@contextlib.contextmanager
def use() -> Iterator[None]:
    """Within it, torch.nn.functional.scaled_dot_product_attention is ours for plain CPU tensors, in all threads.

    Modules that look the function up in torch.nn.functional follow, torch.nn.MultiheadAttention among them.

    >>> import torch, qkv.torch
    >>> with qkv.torch.use():
    ...     torch.nn.functional.scaled_dot_product_attention(*3 * [torch.ones(2, 4)]).shape
    torch.Size([2, 4])
    """
    before = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _in_place_of_torch
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = before


def register_transformers(name: str = "qkv") -> None:
    """Makes Hugging Face models take `attn_implementation="qkv"` (transformers 4.48 or later).

    They get the masks that they would give to torch's scaled_dot_product_attention. Raises ImportError where
    transformers cannot be imported.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, _transformers_attention)
    AttentionMaskInterface.register(name, sdpa_mask)


def _transformers_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                            dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None,
                            **_options: Any) -> tuple[Tensor, None]:
    """What transformers calls: [B, H, T, D] in, [B, T, H, D] out. A missing mask means causal where the module is."""
    if is_causal is None:
        is_causal = query.shape[2] > 1 and attention_mask is None and bool(getattr(module, "is_causal", True))
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[-2]]
    out = scaled_dot_product_attention(query, key, value, attention_mask, dropout, is_causal, scaling,
                                       enable_gqa=key.shape[1] != query.shape[1])
    return out.transpose(1, 2).contiguous(), None
