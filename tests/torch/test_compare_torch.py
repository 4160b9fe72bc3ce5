"""`qkv explain --json` against PyTorch, live: random requests, drawn numbers to the bit, computed ones to 1e-6.

The modules are those of tests/golden/teaching_modules.py. Run by ./dev test --torch.
"""

import random
import subprocess

import numpy as np
import pytest
import teaching_modules as modules
import torch
from explain_oracle import assert_close, recompute, stage_of
from pinned import require_pinned_torch
from safetensors.torch import load_file, save_file

STAGES = ["self uniform", "self linear", "causal", "wrapper", "multi-head", "cross"]
REQUESTS_PER_STAGE = 20
SOURCE_TOKENS = 8  # of the built-in German sentence


@pytest.fixture(scope="module")
def qkv(program_dir):
    require_pinned_torch()
    return program_dir / "qkv"


def random_request(stage, rng):
    """Options of one run. Raw matrices from [0, 1) stay small: their scores grow with the cube of the width."""
    widest = 6 if stage == "self uniform" else 40
    heads = rng.choice([1, 2, 3, 4]) if stage in ("wrapper", "multi-head", "cross") else 1
    d_out = rng.randint(1, max(1, widest // heads)) * heads
    dropout = rng.choice([0.0, 0.1, 0.25, 0.5, 0.9]) if not stage.startswith("self") else 0.0
    return dict(seed=rng.choice([0, 123, 789, 2**32 - 1, 2**63, rng.randrange(2**32)]), tokens=rng.randint(1, 40),
                dim=rng.randint(1, widest), d_out=d_out, heads=heads, dropout=dropout, train=rng.random() < 0.7,
                bias=stage != "self uniform" and rng.random() < 0.5)


def arguments_of(stage, given):
    arguments = ["--seed", given["seed"], "--tokens", given["tokens"], "--dim", given["dim"], "--d-out", given["d_out"]]
    if stage.startswith("self"):
        arguments += ["--init", stage.split()[1]]
    if stage in ("wrapper", "multi-head", "cross"):
        arguments += ["--heads", given["heads"]]
    if not stage.startswith("self"):
        arguments += ["--dropout", given["dropout"]] + ["--train"] * given["train"]
    return [str(argument) for argument in arguments + ["--qkv-bias"] * given["bias"]]


def module_of(stage, given, context_length=None):
    d_in, d_out, dropout, heads, bias = (given[name] for name in ("dim", "d_out", "dropout", "heads", "bias"))
    context_length = context_length or given["tokens"]
    make = {
        "self uniform": lambda: modules.SelfAttentionMatrices(d_in, d_out),
        "self linear": lambda: modules.SelfAttentionLinear(d_in, d_out, bias),
        "causal": lambda: modules.CausalAttention(d_in, d_out, context_length, dropout, bias),
        "wrapper": lambda: modules.MultiHeadAttentionWrapper(d_in, d_out, context_length, dropout, heads, bias),
        "multi-head": lambda: modules.MultiHeadAttention(d_in, d_out, context_length, dropout, heads, bias),
        "cross": lambda: modules.CrossAttention(d_in, d_in, d_out, dropout, heads, bias),
    }
    return make[stage]()


def named_like_the_document(stage, module):
    """The module's parameters under the names of the document; a wrapper's heads stacked."""
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items() if not name.endswith("mask")}
    if stage == "wrapper":
        names = [name.removeprefix("heads.0.") for name in state if name.startswith("heads.0.")]
        state = {name: np.stack([state[f"heads.{head}.{name}"] for head in range(len(module.heads))]) for name in names}
    return {name if "out_proj" in name else name.removesuffix(".weight"): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_random_requests(qkv, stage):
    rng = random.Random(stage)
    dropped = 0
    for _ in range(REQUESTS_PER_STAGE):
        given = random_request(stage, rng)
        found = stage_of(qkv, stage.split()[0], *arguments_of(stage, given))
        torch.manual_seed(given["seed"])
        inputs = {"inputs": torch.rand(given["tokens"], given["dim"])}
        if stage == "cross":
            inputs["source"] = torch.rand(SOURCE_TOKENS, given["dim"])
        module = module_of(stage, given).train(given["train"])
        with torch.no_grad():
            output = module(*inputs.values())
        drawn = {name: tensor.numpy() for name, tensor in inputs.items()} | named_like_the_document(stage, module)
        for name, tensor in drawn.items():
            assert found["tensors"][name].shape == tensor.shape, (given, name)
            assert found["tensors"][name].tobytes() == tensor.tobytes(), (given, name)
        recompute(found)
        last = "output" if "output" in found["tensors"] else "context"
        assert_close(found["tensors"][last], output.double().numpy(), f"{given} {last}")
        assert_close(found["tensors"]["weights"], module_weights(module, "weights"), f"{given} weights")
        if given["train"] and given["dropout"] > 0:
            dropped += 1
            expected = module_weights(module, "dropped_weights")
            np.testing.assert_array_equal(found["tensors"]["dropped_weights"] == 0, expected == 0, err_msg=str(given))
            assert_close(found["tensors"]["dropped_weights"], expected, f"{given} dropped_weights")
    assert dropped > 0 or stage.startswith("self")


def module_weights(module, name):
    return getattr(module, name).double().numpy()


@pytest.mark.parametrize("normalise", ["sum", "naive", "softmax"])
def test_simple(qkv, normalise):
    for seed in range(5):
        found = stage_of(qkv, "simple", "--tokens", "12", "--dim", "7", "--seed", str(seed), "--normalise", normalise)
        torch.manual_seed(seed)
        x = torch.rand(12, 7)
        assert found["tensors"]["inputs"].tobytes() == x.numpy().tobytes()
        scores = x @ x.T
        weights = scores / scores.sum(-1, keepdim=True) if normalise == "sum" else torch.softmax(scores, -1)
        assert_close(found["tensors"]["weights"], weights.double().numpy(), "weights")
        assert_close(found["tensors"]["context"], (weights @ x).double().numpy(), "context")


SAVED = dict(dim=3, d_out=4, heads=2, dropout=0.0, bias=True, tokens=6)


@pytest.mark.parametrize("stage", STAGES)
def test_files_go_both_ways(qkv, program_dir, tmp_path, stage):
    subprocess.run([program_dir / "save_modules", tmp_path], check=True)
    given = SAVED | {"bias": stage != "self uniform"}
    module = module_of(stage, given)
    module.load_state_dict(load_file(tmp_path / f"{stage.replace(' ', '_')}.safetensors"), strict=True)
    torch.manual_seed(7)
    expected = module_of(stage, given).state_dict()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name

    torch.manual_seed(99)
    module = module_of(stage, given, context_length=9).eval()
    save_file(module.state_dict(), tmp_path / "torch.safetensors")
    x, source = torch.randn(6, 3), torch.randn(5, 3)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "source.npy", source.numpy())
    arguments = ["--weights", str(tmp_path / "torch.safetensors"), "--embeddings", str(tmp_path / "x.npy")]
    if stage == "cross":
        arguments += ["--source-embeddings", str(tmp_path / "source.npy")]
    if stage in ("multi-head", "cross"):
        arguments += ["--heads", "2"]
    found = stage_of(qkv, stage.split()[0], *arguments)["tensors"]
    with torch.no_grad():
        output = module(x, source) if stage == "cross" else module(x)
    assert_close(found["output" if "output" in found else "context"], output.double().numpy(), stage)


@pytest.mark.parametrize("kdim", [None, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_torch_multihead_attention(qkv, tmp_path, kdim, bias):
    torch.manual_seed(3)
    module = torch.nn.MultiheadAttention(12, 3, bias=bias, kdim=kdim, vdim=kdim, batch_first=True).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    save_file(module.state_dict(), tmp_path / "mha.safetensors")
    x, source = torch.randn(7, 12), torch.randn(4, kdim or 12)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "source.npy", source.numpy())
    common = ["--weights", str(tmp_path / "mha.safetensors"), "--heads", "3", "--embeddings", str(tmp_path / "x.npy")]
    found = stage_of(qkv, "cross", *common, "--source-embeddings", str(tmp_path / "source.npy"))["tensors"]
    with torch.no_grad():
        output, weights = module(x, source, source, average_attn_weights=False)
    assert_close(found["output"], output.double().numpy(), "output")
    assert_close(found["weights"], weights.double().numpy(), "weights")
    if kdim is None:
        hidden = torch.ones(7, 7).triu(1).bool()
        with torch.no_grad():
            output, _ = module(x, x, x, attn_mask=hidden)
        found = stage_of(qkv, "multi-head", *common)["tensors"]
        assert_close(found["output"], output.double().numpy(), "causal output")
