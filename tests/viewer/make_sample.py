"""Documents for the page's tests (viewer/schema.md), computed with numpy in float32 from arbitrary seeded parameters.

    python3 make_sample.py NAME > document.json        NAME: journey, training, hostile, long, padding, one
"""

import json
import sys

import numpy as np

JOURNEY = ["Your", "journey", "starts", "with", "one", "step"]
JOURNEY_VECTORS = [[0.43, 0.15, 0.89], [0.55, 0.87, 0.66], [0.57, 0.85, 0.64], [0.22, 0.58, 0.33], [0.77, 0.25, 0.10],
                   [0.05, 0.80, 0.55]]
TRANSLATION = ["Can", "you", "help", "me", "translate", "this", "sentence"]
TRANSLATION_SOURCE = ["Kannst", "du", "mir", "helfen", "diesen", "Satz", "zu", "übersetzen"]
HOSTILE = ["</script><img src=x onerror=window.hacked=1>", "<b>bold</b>", "{{script}}", "שלום עולם", "\u202eevil\u202c",
           "👩‍👩‍👧‍👦", "long" * 400, "", " ", "=1+1", 'quo"te,comma', "line\nbreak", "\u2028", "&amp;", "\x00nul"]

TITLES = {"simple": "Simple: no weights, only dot products", "self": "Self-attention: trainable query, key and value",
          "causal": "Causal: the future is hidden", "wrapper": "Several causal heads, side by side",
          "multi-head": "Multi-head: one projection, split into heads", "cross": "Cross-attention: another sequence answers"}


def tensor(array):
    array = np.asarray(array, dtype=np.float32)

    def number(value):
        if np.isnan(value):
            return "nan"
        if np.isinf(value):
            return "inf" if value > 0 else "-inf"
        return float(str(value))  # the shortest digits that read back as the same float32

    return {"shape": list(array.shape), "data": [number(value) for value in array.ravel()]}


def softmax(scores):
    with np.errstate(invalid="ignore"):
        parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = parts / parts.sum(axis=-1, keepdims=True)
    return np.where(np.isneginf(scores).all(axis=-1, keepdims=True), np.float32(0), weights).astype(np.float32)


def simple(tokens, x):
    scores = x @ x.T
    weights = softmax(scores)
    tensors = {"inputs": x, "scores": scores, "sum_normalised": scores / scores.sum(axis=1, keepdims=True),
               "weights": weights, "context": weights @ x}
    return {"stage": "simple", "title": TITLES["simple"], "normalise": "softmax", "d_in": x.shape[1], "d_out": x.shape[1],
            "tensors": tensors}


def attention(kind, x, rng, *, d_out=2, heads=1, init="linear", dropout=0.0, training=False, bias=False, source=None,
              padding=0, slim=False):
    """Any stage with weights. `wrapper` has whole heads of d_out each, the others split d_out."""
    splits = kind in ("multi-head", "cross")
    head_dim = d_out // heads if splits else d_out
    keys_from = x if source is None else source
    scale = np.float32(1 / np.sqrt(head_dim))
    tensors = {"inputs": x}
    if source is not None:
        tensors["source"] = source

    projected = {}
    for name, result, origin in (("W_query", "queries", x), ("W_key", "keys", keys_from), ("W_value", "values", keys_from)):
        d_in = origin.shape[1]
        if init == "uniform":
            tensors[name] = weight = rng.random((d_in, d_out), dtype=np.float32)
            projected[result] = origin @ weight
            continue
        bound = 1 / np.sqrt(d_in)
        shape = (heads, d_out) if kind == "wrapper" else (d_out,)
        weight = rng.uniform(-bound, bound, (*shape, d_in)).astype(np.float32)
        tensors[name] = weight
        projected[result] = origin @ np.swapaxes(weight, -1, -2)
        if bias:
            tensors[f"{name}.bias"] = offset = rng.uniform(-bound, bound, shape).astype(np.float32)
            projected[result] = projected[result] + (offset[:, None, :] if kind == "wrapper" else offset)
        if splits:
            projected[result] = projected[result].reshape(len(origin), heads, head_dim).transpose(1, 0, 2)
    q, k, v = projected["queries"], projected["keys"], projected["values"]
    scores = q @ np.swapaxes(k, -1, -2)
    scaled = (scores * scale).astype(np.float32)
    masked = scaled
    if kind in ("causal", "wrapper", "multi-head"):
        masked = np.where(np.tril(np.ones(scaled.shape[-2:], bool)), scaled, np.float32(-np.inf))
    if padding:
        masked = scaled.copy()
        masked[..., -padding:] = -np.inf
    weights = softmax(masked)
    used = weights
    pairwise = {"scores": scores, "scaled": scaled}
    if masked is not scaled:
        pairwise["masked"] = masked
    pairwise["weights"] = weights
    if training:
        keep = (rng.random(weights.shape) >= dropout).astype(np.float32) / np.float32(1 - dropout)
        used = weights * keep
        pairwise |= {"dropout_mask": keep, "dropped_weights": used}
    context = used @ v
    if context.ndim == 3:
        context = context.transpose(1, 0, 2).reshape(len(x), -1)
    if not slim:
        tensors |= {"queries": q, "keys": k, "values": v} | pairwise
    tensors["context"] = context
    if splits:
        tensors["out_proj.weight"] = weight = rng.uniform(-0.7, 0.7, (d_out, d_out)).astype(np.float32)
        tensors["out_proj.bias"] = offset = rng.uniform(-0.7, 0.7, d_out).astype(np.float32)
        tensors["output"] = context @ weight.T + offset
    stage = {"stage": kind, "title": TITLES[kind], "seed": 123, "dropout": dropout, "training": training, "heads": heads,
             "d_in": x.shape[1], "d_out": d_out, "head_dim": head_dim, "scale": float(scale), "normalise": "softmax",
             "tensors": tensors}
    return stage | ({"init": init} if kind == "self" else {})


def document(tokens, stages, query=0, **extra):
    for stage in stages:
        stage["tensors"] = {name: tensor(array) for name, array in stage["tensors"].items()}
    return {"version": 1, "tokens": tokens, "query": {"index": query, "token": tokens[query]}, "stages": stages, **extra}


def cross(rng, tokens=None, x=None, **options):
    x = rng.random((7, 3), dtype=np.float32) if x is None else x
    source = rng.random((8, 4), dtype=np.float32)
    stage = attention("cross", x, rng, heads=2, source=source, **options)
    return stage | {"tokens": tokens or TRANSLATION, "source_tokens": TRANSLATION_SOURCE}


def all_stages(tokens, x, query, *, dropout=0.0, training=False, bias=False):
    rng = np.random.default_rng(7)
    options = {"dropout": dropout, "training": training, "bias": bias}
    stages = [simple(tokens, x), attention("self", x, rng, init="uniform"), attention("self", x, rng, bias=bias),
              attention("causal", x, rng, **options), attention("wrapper", x, rng, heads=2, **options),
              attention("multi-head", x, rng, heads=2, d_out=4 if bias else 2, **options), cross(rng, **options)]
    return document(tokens, stages, query)


def long_document(count=512, dim=64, heads=4):
    rng = np.random.default_rng(512)
    x = rng.standard_normal((count, dim)).astype(np.float32)
    words = [f"{JOURNEY[i % 6]}#{i // 6 + 1}" for i in range(count)]
    stages = [attention("multi-head", x, rng, heads=heads, d_out=dim), attention("causal", x, rng, d_out=dim, slim=True)]
    return document(words, stages, 100, elided={"tokens": 700, "shown": count})


def make(name):
    x = np.array(JOURNEY_VECTORS, dtype=np.float32)
    rng = np.random.default_rng(11)
    if name == "journey":
        return all_stages(JOURNEY, x, 1)
    if name == "training":
        return all_stages(JOURNEY, x, 1, dropout=0.5, training=True, bias=True)
    if name == "hostile":
        return all_stages(HOSTILE, rng.random((len(HOSTILE), 3), dtype=np.float32), 0)
    if name == "long":
        return long_document()
    if name == "padding":
        return document(TRANSLATION, [cross(rng, padding=3), cross(rng, padding=8)], 2)
    if name == "one":
        return document(["alone"], [simple(["alone"], x[:1]), attention("causal", x[:1], rng)])
    raise SystemExit(f"make_sample: no sample {name!r}; expected journey, training, hostile, long, padding or one")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    json.dump(make(sys.argv[1]), sys.stdout, ensure_ascii=False)
