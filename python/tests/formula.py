"""Attention written down in NumPy's float64: shares no code with the library."""

import numpy as np


def attend(q, k, v, allowed=None, bias=None, scale=None, softcap=0.0, sinks=None):
    """q [B, Hq, Tq, D] … -> context, weights, lse in float64."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + np.asarray(bias, dtype=np.float64)
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    extra = np.full(scores.shape[:-1] + (1,), -np.inf)
    if sinks is not None:
        extra[...] = np.asarray(sinks, dtype=np.float64)[None, :, None, None]
    full = np.concatenate([scores, extra], axis=-1)
    peak = full.max(axis=-1, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    exponents = np.exp(full - peak)
    total = exponents.sum(axis=-1, keepdims=True)
    weights = np.divide(exponents[..., :-1], total, out=np.zeros_like(scores), where=total > 0)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + peak)[..., 0]
    return weights @ v, weights, lse


def triangle(queries, keys, align="top_left"):
    shift = keys - queries if align == "bottom_right" else 0
    return np.arange(keys)[None, :] <= np.arange(queries)[:, None] + shift
