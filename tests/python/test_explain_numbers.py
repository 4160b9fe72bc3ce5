"""The numbers of `qkv explain --json`: numpy computes and draws every one again."""

import itertools
import json

import numpy as np
import pytest
from explain_oracle import assert_close, expected_draws, explain, recompute, run, softmax, stage_of
from safetensors.numpy import save_file

STAGES = ["simple", "self", "causal", "wrapper", "multi-head", "cross"]
ORDER = ["simple", "self", "self", "causal", "wrapper", "multi-head", "cross"]


@pytest.fixture(scope="module")
def qkv(program_dir):
    return program_dir / "qkv"


def test_the_default_document(qkv):
    document = explain(qkv)
    assert set(document) == {"version", "tokens", "query", "stages"}
    assert document["query"] == {"index": 1, "token": "journey"}  # counted from 0, as data is
    assert document["tokens"] == ["Your", "journey", "starts", "with", "one", "step"]
    assert [stage["stage"] for stage in document["stages"]] == ORDER
    assert [stage["seed"] for stage in document["stages"]] == [123, 123, 789, 123, 123, 123, 123]
    assert [stage.get("init") for stage in document["stages"]] == [None, "uniform", "linear"] + [None] * 4
    assert document["stages"][-1]["source_tokens"][-1] == "übersetzen"
    assert all("source_tokens" not in stage for stage in document["stages"][:-1])
    for stage in document["stages"]:
        recompute(stage)


def rounded(values, digits=4):
    return [f"{value:.{digits}f}" for value in values]


def test_the_known_numbers(qkv):
    simple = stage_of(qkv, "simple")["tensors"]
    assert rounded(simple["scores"][1]) == "0.9544 1.4950 1.4754 0.8434 0.7070 1.0865".split()
    assert rounded(simple["sum_normalised"][1]) == "0.1455 0.2278 0.2249 0.1285 0.1077 0.1656".split()
    assert rounded(simple["context"][2]) == "0.4431 0.6496 0.5671".split()
    assert rounded(simple["context"].flat) == (
        "0.4421 0.5931 0.5790 0.4419 0.6515 0.5683 0.4431 0.6496 0.5671 "
        "0.4304 0.6298 0.5510 0.4671 0.5910 0.5266 0.4177 0.6503 0.5645"
    ).split()
    sun = stage_of(qkv, "simple", "--example", "sun")["tensors"]
    assert rounded(sun["context"][1]) == "0.3990 0.3854 0.8610".split()
    raw = stage_of(qkv, "self", "--init", "uniform")
    assert raw["seed"] == 123 and rounded(raw["tensors"]["context"][0]) == "0.2996 0.8053".split()
    linear = stage_of(qkv, "self", "--init", "linear")
    assert linear["seed"] == 789 and rounded(linear["tensors"]["context"][0]) == "-0.0739 0.0713".split()
    assert rounded(linear["tensors"]["context"][5]) == "-0.0754 0.0693".split()
    causal = stage_of(qkv, "causal")["tensors"]
    assert rounded(causal["context"].flat) == (
        "-0.4519 0.2216 -0.5874 0.0058 -0.6300 -0.0632 -0.5675 -0.0843 -0.5526 -0.0981 -0.5299 -0.1081"
    ).split()
    wrapper = stage_of(qkv, "wrapper")["tensors"]
    assert rounded(wrapper["context"][0]) == "-0.4519 0.2216 0.4772 0.1063".split()
    heads = stage_of(qkv, "multi-head")["tensors"]
    assert rounded(heads["output"][0]) == "0.3190 0.4858".split()
    assert rounded(heads["output"][5]) == "0.2575 0.4028".split()


CONFIGURATIONS = [
    dict(seed=seed, tokens=tokens, dim=dim, d_out=d_out, bias=bias, heads=heads)
    for (seed, (tokens, dim, d_out, heads)), bias in itertools.product(
        zip([0, 1, 123, 2**32 - 1, 2**32 + 5, 2**64 - 1], [(1, 1, 1, 1), (2, 3, 4, 2), (5, 7, 6, 3), (17, 16, 16, 4),
                                                           (30, 33, 40, 8), (64, 8, 5, 1)]), [False, True])
]


@pytest.mark.parametrize("stage", STAGES)
def test_drawn_to_the_bit_and_computed_like_numpy(qkv, stage):
    for given in CONFIGURATIONS:
        arguments = ["--tokens", str(given["tokens"]), "--dim", str(given["dim"]), "--seed", str(given["seed"])]
        if stage != "simple":
            arguments += ["--d-out", str(given["d_out"])] + ["--qkv-bias"] * given["bias"]
        if stage not in ("simple", "self", "causal"):
            arguments += ["--heads", str(given["heads"])]
        found = stage_of(qkv, stage, *arguments, *(["--init", "linear"] if stage == "self" else []))
        recompute(found)
        assert found["seed"] == given["seed"]
        drawn = expected_draws(stage, source_tokens=8, **given)
        for name, expected in drawn.items():
            assert found["tensors"][name].tobytes() == expected.tobytes(), (stage, given, name)
        parameters = {name for name in found["tensors"] if "W_" in name or "out_proj" in name}
        assert parameters == set(drawn) - {"inputs", "source"}


@pytest.mark.parametrize("seed", [1, 42, 2024])
def test_the_notebook(qkv, seed):
    found = stage_of(qkv, "self", "--init", "uniform", "--tokens", "10", "--dim", "4", "--seed", str(seed))
    for name, expected in expected_draws("self", seed, 10, 4, 4, init="uniform").items():
        assert found["tensors"][name].tobytes() == expected.tobytes(), name
    recompute(found)


def test_each_stage_starts_after_the_inputs(qkv):
    """Alone or among the others, a stage draws the same numbers."""
    for sentence in (["--seed", "5"], ["Some words of my own", "--dim", "6"], ["--tokens", "4", "--seed", "9"]):
        for stage in explain(qkv, *sentence)["stages"]:
            kind = ["--init", stage["init"]] if "init" in stage else []
            if "linear" in kind and "--seed" not in sentence:
                continue  # alone it has its own seed, 789, for the vectors as well
            alone = stage_of(qkv, stage["stage"], *sentence, *kind)
            assert alone["seed"] == stage["seed"]
            for name, tensor in stage["tensors"].items():
                assert alone["tensors"][name].tobytes() == tensor.tobytes(), (stage["stage"], name)


@pytest.mark.parametrize("stage", STAGES[2:])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_dropout_in_training(qkv, stage, p):
    arguments = ["--tokens", "40", "--dim", "6", "--dropout", str(p)]
    found = stage_of(qkv, stage, *arguments, "--train")
    recompute(found)
    dropped = (found["tensors"]["dropout_mask"] == 0).mean()
    count = found["tensors"]["dropout_mask"].size
    assert abs(dropped - p) <= 5 * np.sqrt(p * (1 - p) / count)
    idle = stage_of(qkv, stage, *arguments)
    assert "dropped_weights" not in idle["tensors"]
    assert any("idle" in remark for remark in idle["remarks"])
    np.testing.assert_array_equal(idle["tensors"]["weights"], found["tensors"]["weights"])


def test_dropout_of_the_known_example(qkv):
    found = stage_of(qkv, "causal", "--dropout", "0.5", "--train")
    recompute(found)
    assert found["training"] is True and found["dropout"] == 0.5


@pytest.mark.parametrize("how", ["sum", "naive", "softmax"])
def test_normalise_under_both_spellings(qkv, how):
    british = stage_of(qkv, "simple", "--normalise", how)
    american = stage_of(qkv, "simple", "--normalize", how)
    recompute(british)
    assert british["normalise"] == american["normalise"] == how
    assert british["tensors"]["context"].tobytes() == american["tensors"]["context"].tobytes()


def test_naive_softmax_overflows_in_the_document(qkv, tmp_path):
    (tmp_path / "big.csv").write_text("100,0\n0,100\n")
    naive = stage_of(qkv, "simple", "--embeddings", str(tmp_path / "big.csv"), "--normalise", "naive")["tensors"]
    assert np.isnan(naive["weights"]).any() and np.isnan(naive["context"]).any()
    stable = stage_of(qkv, "simple", "--embeddings", str(tmp_path / "big.csv"))["tensors"]
    assert np.isfinite(stable["context"]).all()


def test_text_and_embeddings_of_every_kind(qkv, tmp_path):
    x = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    rows = [",".join(repr(float(value)) for value in row) for row in x]
    (tmp_path / "plain.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "labels.csv").write_text("\n".join(f"w{i},{row}" for i, row in enumerate(rows)))
    (tmp_path / "x.json").write_text(json.dumps(x.astype(float).tolist()))
    np.save(tmp_path / "x.npy", x)
    save_file({"embeddings": x}, tmp_path / "x.safetensors")
    for name in ("plain.csv", "labels.csv", "x.json", "x.npy", "x.safetensors"):
        document = explain(qkv, "--stage", "causal", "--embeddings", str(tmp_path / name))
        assert document["stages"][0]["tensors"]["inputs"].tobytes() == x.tobytes(), name
        recompute(document["stages"][0])
        expected = ["w0", "w1", "w2", "w3"] if name == "labels.csv" else ["x1", "x2", "x3", "x4"]
        assert document["tokens"] == expected
    document = explain(qkv, "the cat, the", "--stage", "causal", "--embeddings", str(tmp_path / "x.npy"))
    assert document["tokens"] == ["the", "cat", ",", "the#2"]
    cross = explain(qkv, "--stage", "cross", "--source", "a b c d", "--source-embeddings", str(tmp_path / "x.npy"))
    assert cross["stages"][0]["source_tokens"] == list("abcd")
    assert cross["stages"][0]["tensors"]["source"].tobytes() == x.tobytes()
    recompute(cross["stages"][0])


def layers(rng, d_out, d_in, bias, prefix=""):
    state = {}
    for name in ("query", "key", "value"):
        state[f"{prefix}W_{name}.weight"] = rng.standard_normal((d_out, d_in)).astype(np.float32)
        if bias:
            state[f"{prefix}W_{name}.bias"] = rng.standard_normal(d_out).astype(np.float32)
    return state


def saved_state(stage, rng, bias, mask):
    """A state_dict under the names of the PyTorch teaching classes: d_in 3, d_out 4, 2 heads, context_length 9."""
    future = {"mask": np.triu(np.ones((9, 9), np.float32), 1)} if mask else {}
    if stage == "raw":
        return {f"W_{name}": rng.standard_normal((3, 4)).astype(np.float32) for name in ("query", "key", "value")}
    if stage == "wrapper":
        state = {}
        for head in range(3):
            state |= layers(rng, 4, 3, bias, f"heads.{head}.")
            state |= {f"heads.{head}.{name}": tensor for name, tensor in future.items()}
        return state
    state = layers(rng, 4, 3, bias)
    if stage in ("multi-head", "cross"):
        state["out_proj.weight"] = rng.standard_normal((4, 4)).astype(np.float32)
        state["out_proj.bias"] = rng.standard_normal(4).astype(np.float32)
    return state | (future if stage in ("causal", "multi-head") else {})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stage", ["raw", *STAGES[1:]])
def test_weights_saved_by_python(qkv, tmp_path, stage, bias):
    rng = np.random.default_rng(len(stage) + bias)
    for mask in (False, True):
        state = saved_state(stage, rng, bias, mask)
        save_file(state, tmp_path / "w.safetensors")
        arguments = ["--weights", str(tmp_path / "w.safetensors")]
        source = np.arange(6, dtype=np.float32).reshape(2, 3)
        if stage == "cross":
            np.save(tmp_path / "source.npy", source)
            arguments += ["--source-embeddings", str(tmp_path / "source.npy")]
            arguments += ["--example", "journey"]
        found = stage_of(qkv, "self" if stage == "raw" else stage, *arguments)
        assert found["weights_file"] == "w.safetensors"
        recompute(found)
        for name, tensor in state.items():
            if "mask" in name:
                continue
            if stage == "wrapper":
                head, name = int(name.split(".")[1]), name.split(".", 2)[2]
                seen = found["tensors"][name.removesuffix(".weight")][head]
            else:
                seen = found["tensors"][name if "out_proj" in name else name.removesuffix(".weight")]
            assert seen.tobytes() == tensor.tobytes(), name


def torch_multihead(state, query, source, heads, causal):
    """torch.nn.MultiheadAttention in eval mode, written down from its documentation."""
    d_out = query.shape[1]
    if "in_proj_weight" in state:
        weights = np.split(state["in_proj_weight"].astype(float), 3)
    else:
        weights = [state[f"{name}_proj_weight"].astype(float) for name in "qkv"]
    biases = np.split(state["in_proj_bias"].astype(float), 3) if "in_proj_bias" in state else [0, 0, 0]
    q, k, v = (x @ w.T + b for x, w, b in zip((query, source, source), weights, biases))
    contexts = []
    for part in np.split(np.arange(d_out), heads):
        scores = q[:, part] @ k[:, part].T / np.sqrt(len(part))
        if causal:
            scores[np.triu_indices(len(query), 1)] = -np.inf
        contexts.append(softmax(scores) @ v[:, part])
    return np.concatenate(contexts, -1) @ state["out_proj.weight"].astype(float).T + state.get("out_proj.bias", 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kdim", [None, 5])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_state_dicts_of_torch_multihead_attention(qkv, tmp_path, bias, kdim, heads):
    rng = np.random.default_rng(heads)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32) * np.float32(0.4)
    state = {"out_proj.weight": draw(8, 8)}
    if kdim is None:
        state["in_proj_weight"] = draw(24, 8)
    else:
        state |= {"q_proj_weight": draw(8, 8), "k_proj_weight": draw(8, kdim), "v_proj_weight": draw(8, kdim)}
    if bias:
        state |= {"in_proj_bias": draw(24), "out_proj.bias": draw(8)}
    save_file(state, tmp_path / "mha.safetensors")
    query, source = draw(7, 8), draw(5, kdim or 8)
    np.save(tmp_path / "query.npy", query)
    np.save(tmp_path / "source.npy", source)
    common = ["--weights", str(tmp_path / "mha.safetensors"), "--heads", str(heads), "--embeddings",
              str(tmp_path / "query.npy")]
    cross = stage_of(qkv, "cross", *common, "--source-embeddings", str(tmp_path / "source.npy"))
    recompute(cross)
    assert_close(cross["tensors"]["output"], torch_multihead(state, query, source, heads, False), "cross")
    if kdim is None:
        causal = stage_of(qkv, "multi-head", *common)
        recompute(causal)
        assert_close(causal["tensors"]["output"], torch_multihead(state, query, query, heads, True), "causal")


def test_a_large_document(qkv):
    found = stage_of(qkv, "multi-head", "--tokens", "300", "--dim", "64", "--heads", "8")
    recompute(found)
    assert found["tensors"]["weights"].shape == (8, 300, 300)


def test_the_program_says_the_same_twice(qkv):
    first = run(qkv, "explain", "--json", "--train", "--dropout", "0.3")
    second = run(qkv, "explain", "--json", "--train", "--dropout", "0.3")
    assert first.stdout == second.stdout
