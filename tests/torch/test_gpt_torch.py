"""qkv::nn::Gpt against the teaching GPT, live: random models from PyTorch's files, dropped alike, forward and backward in
float64. Run by ./dev test --torch."""

import random
import subprocess

import pytest
import torch
from pinned import require_pinned_torch
from safetensors.torch import load_file, save_file
from teaching_gpt import Gpt
from torch.nn.functional import cross_entropy

TOLERANCE = 1e-12


def random_options(rng):
    heads = rng.randint(1, 4)
    return {"vocab_size": rng.randint(1, 60), "context_length": rng.randint(1, 20), "emb_dim": heads * rng.randint(1, 9),
            "num_heads": heads, "num_layers": rng.randint(1, 3), "dropout": rng.choice([0.0, 0.1, 0.5]),
            "qkv_bias": rng.random() < 0.5, "tie_weights": rng.random() < 0.5, "gelu": rng.choice(["tanh", "erf"])}


def scattered(module):
    """With norms that scale and shift, which start as ones and zeros."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return module.double()


@pytest.mark.parametrize("case", range(20))
def test_random_models(program_dir, tmp_path, case):
    require_pinned_torch()
    rng = random.Random(case)
    options = random_options(rng)
    torch.manual_seed(case)
    module = scattered(Gpt(**options))
    shape = (rng.randint(1, 5), rng.randint(1, options["context_length"]))
    ids, targets = (torch.randint(options["vocab_size"], shape) for _ in range(2))
    targets[0, 1:] = -100
    state = {f"state.{name}": tensor.clone() for name, tensor in module.state_dict().items()}
    save_file(state | {"ids": ids, "targets": targets}, tmp_path / "in.safetensors")
    subprocess.run([program_dir / "gpt_tool", tmp_path / "in.safetensors", tmp_path / "out.safetensors",
                    str(options["num_heads"]), options["gelu"], str(options["dropout"]), str(case)], check=True)
    found = load_file(tmp_path / "out.safetensors")

    torch.manual_seed(case)
    logits = module(ids)
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    expected = {"logits": logits.detach(), "loss": loss.detach()}
    expected |= {f"gradient.{name}": parameter.grad for name, parameter in module.named_parameters()}
    assert set(found) == set(expected) | set(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        error = float((found[name] - tensor).abs().max())
        assert error <= TOLERANCE * max(1.0, float(tensor.abs().max())), (name, error)
