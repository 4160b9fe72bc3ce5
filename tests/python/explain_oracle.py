"""`qkv explain` run and its JSON read strictly, and every stage computed again by numpy. Shares no code with qkv."""

import json
import subprocess

import numpy as np

NON_FINITE = {"-inf": -np.inf, "inf": np.inf, "nan": np.nan}
TIMEOUT = 60


def run(program, *arguments, **options):
    """The finished process, its output as bytes."""
    command = [program, *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, **options)


def unique_keys(pairs):
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"a key appears twice: {keys}"
    return dict(pairs)


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def read_tensor(name, tensor):
    assert set(tensor) == {"shape", "data"}, name
    for value in tensor["data"]:
        assert isinstance(value, (int, float)) or value in NON_FINITE, (name, value)
    assert len(tensor["data"]) == int(np.prod(tensor["shape"], dtype=int)), name
    values = np.array([NON_FINITE.get(value, value) for value in tensor["data"]], np.float64)
    for value in values[:1000]:  # the shortest digits of a float32, neither fewer nor more
        assert not np.isfinite(value) or float(str(np.float32(value))) == value, (name, value)
    return values.astype(np.float32).reshape(tensor["shape"])


def explain(program, *arguments):
    """The document of `qkv explain --json arguments`, tensors as float32 arrays."""
    done = run(program, "explain", "--json", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    text = done.stdout.decode("utf-8")
    assert text.endswith("}\n") and text.count("\n") == 1
    document = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique_keys)
    assert document["version"] == 1
    for stage in document["stages"]:
        stage["tensors"] = {name: read_tensor(name, tensor) for name, tensor in stage["tensors"].items()}
    return document


def stage_of(program, name, *arguments):
    (stage,) = explain(program, "--stage", name, *arguments)["stages"]
    return stage


def assert_close(found, expected, what):
    """|a − b| ≤ 1e-6 · max(1, |b|), infinities and NaN in the same places."""
    assert found.shape == np.shape(expected), (what, found.shape, np.shape(expected))
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(found[special], np.asarray(expected)[special], err_msg=what)
    with np.errstate(invalid="ignore"):
        error = np.abs(found.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    worst = error[~special].max(initial=0)
    assert worst <= 1e-6, f"{what} is {worst:.2e} off"


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class Words:
    """The 32-bit stream of a Mersenne Twister, from numpy's own, and PyTorch's uniform floats made of it."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed & 0xFFFFFFFF)

    def words(self, count):
        return self.state.randint(0, 2**32, size=count, dtype=np.uint32)

    def rand(self, *shape):
        low = self.words(int(np.prod(shape))) & 0xFFFFFF
        return (low * 2.0**-24).astype(np.float32).reshape(shape)

    def linear(self, d_out, d_in, bias):
        """torch.nn.Linear's weight and bias: x · 2b − b, rounded once."""
        slope_gain = np.sqrt(2.0 / (1.0 + np.sqrt(5.0) ** 2))
        weight = self.symmetric(np.sqrt(3.0) * (slope_gain / np.sqrt(float(d_in))), d_out, d_in)
        return weight, self.symmetric(1.0 / np.sqrt(float(d_in)), d_out) if bias else None

    def symmetric(self, bound, *shape):
        low, high = np.float32(-bound), np.float32(bound)
        width = np.float32(high - low)
        return (self.rand(*shape).astype(np.float64) * float(width) + float(low)).astype(np.float32)


def recompute(stage):
    """Checks every tensor of a stage against numpy's float64, each from the tensors that it is made of."""
    given = {name: tensor.astype(np.float64) for name, tensor in stage["tensors"].items()}
    found = stage["tensors"]

    def check(name, expected):
        assert_close(found[name], expected, f"{stage['stage']} {name}")

    if stage["stage"] == "simple":
        check("scores", given["inputs"] @ given["inputs"].T)
        check("sum_normalised", given["scores"] / given["scores"].sum(-1, keepdims=True))
        how = {"sum": lambda s: s / s.sum(-1, keepdims=True), "naive": softmax, "softmax": softmax}
        check("weights", how[stage["normalise"]](given["scores"]))
        check("context", given["weights"] @ given["inputs"])
        return
    heads, split = stage["heads"], stage["stage"] in ("multi-head", "cross")
    for name in ("query", "key", "value"):
        x = given["source"] if stage["stage"] == "cross" and name != "query" else given["inputs"]
        weight = given[f"W_{name}"]
        raw = stage.get("init") == "uniform"
        projected = x @ (weight if raw else np.swapaxes(weight, -1, -2))
        bias = given.get(f"W_{name}.bias")
        if bias is not None:
            projected = projected + (bias[:, None, :] if stage["stage"] == "wrapper" else bias)
        if split:
            projected = projected.reshape(len(x), heads, -1).transpose(1, 0, 2)
        check({"query": "queries", "key": "keys", "value": "values"}[name], projected)
    check("scores", given["queries"] @ np.swapaxes(given["keys"], -1, -2))
    check("scaled", given["scores"] / np.sqrt(given["queries"].shape[-1]))
    last = "scaled"
    if stage["stage"] in ("causal", "wrapper", "multi-head"):
        tokens = len(given["inputs"])
        future = np.triu(np.ones((tokens, tokens), bool), 1)
        np.testing.assert_array_equal(found["masked"], np.where(future, -np.inf, found["scaled"]))
        last = "masked"
    else:
        assert "masked" not in found
    check("weights", softmax(given[last]))
    final = "weights"
    if stage["training"] and stage["dropout"] > 0:
        p = stage["dropout"]
        kept = np.float32(1) / np.float32(1 - p) if p < 1 else np.float32(0)
        assert np.isin(found["dropout_mask"], [0, kept]).all()
        check("dropped_weights", given["weights"] * given["dropout_mask"])
        final = "dropped_weights"
    else:
        assert "dropped_weights" not in found and "dropout_mask" not in found
    context = given[final] @ given["values"]
    if heads > 1 or split or stage["stage"] == "wrapper":
        context = np.concatenate(list(context), axis=-1)
    check("context", context)
    if split:
        check("output", given["context"] @ given["out_proj.weight"].T + given["out_proj.bias"])
    else:
        assert "output" not in found


def expected_draws(stage, seed, tokens, dim, d_out, *, source_tokens=0, init="linear", bias=False, heads=2):
    """The inputs and parameters that PyTorch would draw: inputs, then the source's, then the parameters."""
    words, drawn = Words(seed), {}
    drawn["inputs"] = words.rand(tokens, dim)
    if stage == "cross":
        drawn["source"] = words.rand(source_tokens, dim)
    if stage == "self" and init == "uniform":
        return drawn | {f"W_{name}": words.rand(dim, d_out) for name in ("query", "key", "value")}

    def layers():
        for name in ("query", "key", "value"):
            weight, offset = words.linear(d_out, dim, bias)
            yield f"W_{name}", weight
            if bias:
                yield f"W_{name}.bias", offset

    if stage == "wrapper":
        per_head = [dict(layers()) for _ in range(heads)]
        return drawn | {name: np.stack([head[name] for head in per_head]) for name in per_head[0]}
    if stage != "simple":
        drawn |= dict(layers())
    if stage in ("multi-head", "cross"):
        drawn["out_proj.weight"], drawn["out_proj.bias"] = words.linear(d_out, d_out, True)
    return drawn
