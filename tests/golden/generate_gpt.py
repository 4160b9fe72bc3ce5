"""Writes gpt.json and gpt.safetensors: a small GPT's logits, losses, gradients and training. Needs torch==2.15.0,
transformers==5.23.0, safetensors.

    python3 tests/golden/generate_gpt.py

README.md beside this file describes both.
"""

import copy
import json
from pathlib import Path

import torch
import transformers
from fnv import fnv1a
from pinned import require_pinned_torch
from safetensors.torch import save_file
from teaching_gpt import Gpt
from torch.nn.functional import cross_entropy

TRANSFORMERS = "5.23.0"
SIZE_LIMIT = 220_000
IGNORED = -100

SMALL = {"vocab_size": 13, "context_length": 7, "emb_dim": 8, "num_heads": 2, "num_layers": 2}
# name, seed, options, shape of the ids, whether some targets are ignored
CASES = (
    ("plain", 123, SMALL, (2, 7), False),
    ("tied", 789, SMALL | {"tie_weights": True, "gelu": "erf", "qkv_bias": True}, (3, 4), True),
    ("dropped", 7, SMALL | {"dropout": 0.1, "qkv_bias": True, "num_heads": 4}, (2, 6), True),
    ("tied_dropped", 2024, SMALL | {"dropout": 0.3, "tie_weights": True, "gelu": "erf"}, (1, 7), False),
    ("wide", 2**31 + 7, SMALL | {"emb_dim": 18, "num_heads": 3, "num_layers": 1, "dropout": 0.5}, (2, 5), False),
)

STEPS, BATCH, TOKENS = 50, 8, 9
ADAMW = {"lr": 0.01, "weight_decay": 0.1}
TASK = {"vocab_size": 17, "context_length": 12, "emb_dim": 16, "num_heads": 2, "num_layers": 2}
RUNS = (
    {"name": "plain", "seed": 123, "options": TASK, **ADAMW},
    {"name": "dropped", "seed": 7, "options": TASK | {"dropout": 0.1, "qkv_bias": True}, **ADAMW},
    {"name": "tied", "seed": 11, "options": TASK | {"tie_weights": True, "gelu": "erf", "dropout": 0.1}, **ADAMW},
)


def digest(module):
    return fnv1a(b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters()))


def loss_of(module, ids, targets):
    logits = module(ids)
    return logits, cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def run_case(name, seed, options, shape, ignoring):
    """One case: its description, and its tensors by name."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(options["vocab_size"], shape, generator=generator)
    targets = torch.randint(options["vocab_size"], shape, generator=generator)
    if ignoring:
        targets[:, 1::3] = IGNORED
    torch.manual_seed(seed)
    module = Gpt(**options)
    case = {"name": name, "seed": seed, "options": options, "parameters_digest": digest(module),
            "ids": ids.tolist(), "targets": targets.tolist()}
    state = torch.get_rng_state()
    tensors = {}
    for suffix, model in (("", module), ("64", copy.deepcopy(module).double())):
        torch.set_rng_state(state)  # Bernoulli draws are the same in every type
        logits, loss = loss_of(model, ids, targets)
        loss.backward()
        case["loss" + suffix] = loss.item()
        tensors[f"{name}.logits{suffix}"] = logits.detach()
        for key, parameter in model.named_parameters():
            tensors[f"{name}.gradient{suffix}.{key}"] = parameter.grad
    return case, tensors


def draw_sequences(options):
    """Each sequence multiplies by 3 and adds 1, modulo the vocabulary, from a first token that is drawn."""
    size = options["vocab_size"]
    tokens = [(torch.rand(BATCH) * size).long()]
    for _ in range(TOKENS):
        tokens.append((3 * tokens[-1] + 1) % size)
    sequences = torch.stack(tokens, 1)
    return sequences[:, :-1], sequences[:, 1:]


def train(run, dtype):
    torch.manual_seed(run["seed"])
    module = Gpt(**run["options"])
    drawn = digest(module)
    module.to(dtype)
    optimizer = torch.optim.AdamW(module.parameters(), lr=run["lr"], weight_decay=run["weight_decay"])
    losses = []
    for _ in range(STEPS):
        _, loss = loss_of(module, *draw_sequences(run["options"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, drawn


def described(run):
    exact, drawn = train(run, torch.float64)
    single, drawn32 = train(run, torch.float32)
    assert drawn == drawn32 and exact[-1] < exact[0] / 2, exact
    return run | {"parameters_digest": drawn, "losses64": exact, "losses32": single}


def gpt2():
    """A small GPT-2 of Hugging Face, all of it random: its biases and norms would start as zeros and ones."""
    config = transformers.GPT2Config(vocab_size=11, n_positions=7, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0,
                                     embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(123)
    module = transformers.GPT2LMHeadModel(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        logits = module.double()(ids).logits
    tensors = {f"gpt2.state.{key}": value for key, value in state.items()}
    return {"num_heads": config.n_head, "ids": ids.tolist()}, tensors | {"gpt2.logits64": logits}


def main():
    made_with = require_pinned_torch()
    if transformers.__version__ != TRANSFORMERS:
        raise SystemExit(f"needs transformers=={TRANSFORMERS}, found {transformers.__version__}")
    cases, tensors = [], {}
    for case in CASES:
        description, results = run_case(*case)
        cases.append(description)
        tensors |= results
    runs = [described(run) for run in RUNS]
    hugging_face, results = gpt2()
    tensors |= results
    folder = Path(__file__).parent
    made_with += f"; transformers {TRANSFORMERS}"
    save_file(tensors, folder / "gpt.safetensors", metadata={"made_with": made_with})
    size = (folder / "gpt.safetensors").stat().st_size
    assert size <= SIZE_LIMIT, f"{size} bytes are too many to keep in the repository"
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    run_lines = ",\n  ".join(json.dumps(run) for run in runs)
    task = json.dumps({"steps": STEPS, "batch": BATCH, "tokens": TOKENS})
    (folder / "gpt.json").write_text(
        f'{{"made_with": "{made_with}", "cases": [\n  {lines}\n], "task": {task}, "runs": [\n  {run_lines}\n],\n'
        f'"gpt2": {json.dumps(hugging_face)}}}\n')
    print(len(cases), "cases,", len(runs), "runs,", len(tensors), "tensors,", size, "bytes")
    for run in runs:
        print(run["name"], run["losses64"][0], run["losses64"][-1])


if __name__ == "__main__":
    main()
