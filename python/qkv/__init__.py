"""Attention, exact, explained and fast.

    qkv.attention(q, k, v, mask=qkv.Mask.causal("top_left"))

Arrays come in by DLPack or the buffer protocol (NumPy, PyTorch, JAX, memoryview …) and are read in place. Results are
NumPy arrays where NumPy can be imported and has their type, else `qkv.Array`, and own their memory. Calls release the
GIL and run on the threads of a `Runtime`; results never depend on how many there are. docs/python.md says more;
`qkv.nn` holds the teaching modules and `qkv.torch` the drop-in for PyTorch's scaled_dot_product_attention.
"""

from typing import Any, Literal, NamedTuple

from . import _core, nn
from ._core import (
    Array,
    Dropout,
    Generator,
    KvCache,
    Mask,
    Offsets,
    Rope,
    Runtime,
    attention,
    attention_merge,
    attention_merge_sinks,
    get_threads,
    read_safetensors,
    set_threads,
    write_safetensors,
)
from ._core import version as __version__

__all__ = [
    "Array",
    "AttentionGradients",
    "AttentionResult",
    "Dropout",
    "Generator",
    "KvCache",
    "Mask",
    "Offsets",
    "Rope",
    "Runtime",
    "__version__",
    "attention",
    "attention_backward",
    "attention_merge",
    "attention_merge_sinks",
    "attention_with",
    "get_threads",
    "nn",
    "read_safetensors",
    "set_threads",
    "write_safetensors",
]


class AttentionResult(NamedTuple):
    """What attention_with gives; None for what was not asked for."""

    context: Any
    lse: Any
    weights: Any
    scores: Any


class AttentionGradients(NamedTuple):
    """What attention_backward gives; None for what was not asked for."""

    dq: Any
    dk: Any
    dv: Any
    dbias: Any
    dsinks: Any
    dalibi: Any


def attention_with(
    q: object,
    k: object,
    v: object,
    *,
    lse: object = None,
    weights: object = None,
    scores: object = None,
    scores_at: Literal["scaled", "capped", "masked", "weights"] = "masked",
    lse_counts_sinks: bool = True,
    out: object | None = None,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: object | None = None,
    dropout: Dropout | None = None,
    offsets: Offsets | None = None,
    runtime: Runtime | None = None,
) -> AttentionResult:
    """`attention`, and what else is asked for: True gives a new array, an array is filled, None is not computed.

    lse      log Σ exp(score) per row, [B, Hq, Tq]; -inf for an empty row
    weights  per head and before dropout, [B, Hq, Tq, Tk]
    scores   the same shape, at the point `scores_at`: after the scale, after softcap, after bias, ALiBi and mask

    float32 (float64 with float64 queries); an array that is handed in may have any float type for weights and scores.
    Asking changes no bit of the context.

    >>> import numpy, qkv
    >>> x = numpy.zeros((2, 4), numpy.float32)
    >>> qkv.attention_with(x, x, x, weights=True).weights.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return AttentionResult(
        *_core.attention_with(
            q, k, v, lse=lse, weights=weights, scores=scores, scores_at=scores_at, lse_counts_sinks=lse_counts_sinks,
            out=out, mask=mask, scale=scale, softcap=softcap, sinks=sinks, dropout=dropout, offsets=offsets,
            runtime=runtime)
    )


def attention_backward(
    d_out: object,
    q: object,
    k: object,
    v: object,
    out: object,
    lse: object,
    *,
    dq: object = True,
    dk: object = True,
    dv: object = True,
    dbias: object = None,
    dsinks: object = None,
    dalibi: object = None,
    lse_counts_sinks: bool = True,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: object | None = None,
    dropout: Dropout | None = None,
    offsets: Offsets | None = None,
    runtime: Runtime | None = None,
) -> AttentionGradients:
    """Gradients of sum(d_out · attention(q, k, v)) with the same options; `out` and `lse` are forward's.

    Each gradient is wanted with True (a new array), as an array to fill, or not (False, None). dq, dk and dv have the
    shapes of q, k and v; dbias has the bias's, filled up to four dimensions; dsinks and dalibi are [Hq] or [B, Hq].

    >>> import numpy, qkv
    >>> x = numpy.ones((2, 4), numpy.float32)
    >>> forward = qkv.attention_with(x, x, x, lse=True)
    >>> qkv.attention_backward(x, x, x, x, forward.context, forward.lse, dq=False, dk=False).dv.tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    return AttentionGradients(
        *_core.attention_backward(
            d_out, q, k, v, out, lse, dq=dq, dk=dk, dv=dv, dbias=dbias, dsinks=dsinks, dalibi=dalibi,
            lse_counts_sinks=lse_counts_sinks, mask=mask, scale=scale, softcap=softcap, sinks=sinks, dropout=dropout,
            offsets=offsets, runtime=runtime)
    )
