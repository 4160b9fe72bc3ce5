"""Writes training.json: the losses of the teaching CrossAttention while it learns to reverse a sequence.

    python3 tests/golden/generate_training.py

Needs torch==2.15.0. README.md beside this file describes the file and the task.
"""

import json
from pathlib import Path

import torch
from fnv import fnv1a
from pinned import require_pinned_torch
from teaching_modules import CrossAttention
from torch.nn.functional import mse_loss

STEPS = 50
BATCH, TOKENS, WIDTH = 16, 6, 8
ADAMW = {"optimizer": "AdamW", "lr": 0.1, "weight_decay": 0.01}
SGD = {"optimizer": "SGD", "lr": 1.0, "momentum": 0.9, "weight_decay": 0.001, "max_norm": 0.1}
RUNS = (
    {"name": "adamw", "seed": 123, "num_heads": 1, "qkv_bias": False, "dropout": 0.0, **ADAMW},
    {"name": "adamw_dropout", "seed": 7, "num_heads": 2, "qkv_bias": True, "dropout": 0.1, **ADAMW},
    {"name": "sgd_clipped", "seed": 2024, "num_heads": 2, "qkv_bias": True, "dropout": 0.0, **SGD},
)


def draw_reversal(dtype):
    """Query i is the code of place i; the source is content beside codes; wanted is the content in reverse."""
    content = torch.rand(BATCH, TOKENS, WIDTH)
    codes = torch.eye(TOKENS).expand(BATCH, -1, -1)
    source = torch.cat([content, codes], dim=-1)
    return codes.to(dtype), source.to(dtype), content.flip(1).to(dtype)


def train(run, dtype):
    """The losses of a run, the gradients' norms before clipping, and the digest of the parameters as drawn."""
    torch.manual_seed(run["seed"])
    module = CrossAttention(TOKENS, WIDTH + TOKENS, WIDTH, run["dropout"], run["num_heads"], run["qkv_bias"])
    digest = fnv1a(b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters()))
    module.to(dtype)
    options = {key: run[key] for key in ("lr", "momentum", "weight_decay") if key in run}
    optimizer = getattr(torch.optim, run["optimizer"])(module.parameters(), **options)
    losses, norms = [], []
    for _ in range(STEPS):
        queries, source, wanted = draw_reversal(dtype)
        loss = mse_loss(module(queries, source), wanted)
        optimizer.zero_grad()
        loss.backward()
        if "max_norm" in run:
            norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), run["max_norm"]).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, digest


def described(run):
    exact, norms, digest = train(run, torch.float64)
    single, _, digest32 = train(run, torch.float32)
    assert digest == digest32 and exact[-1] < exact[0] / 2
    # Clipping is tested where it acts and where it does not.
    assert not norms or min(norms) < run["max_norm"] < max(norms)
    return run | {"parameters_digest": digest, "losses64": exact, "losses32": single}


def main():
    made_with = require_pinned_torch()
    shape = {"steps": STEPS, "batch": BATCH, "tokens": TOKENS, "width": WIDTH}
    runs = ",\n  ".join(json.dumps(described(run)) for run in RUNS)
    path = Path(__file__).parent / "training.json"
    path.write_text(f'{{"made_with": "{made_with}", "task": {json.dumps(shape)}, "runs": [\n  {runs}\n]}}\n')
    print(len(RUNS), "runs,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
