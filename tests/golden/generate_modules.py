"""Writes modules.safetensors and modules.json: the teaching modules run by PyTorch. Needs torch==2.15.0, safetensors.

    python3 tests/golden/generate_modules.py

README.md beside this file describes both.
"""

import copy
import itertools
import json
from pathlib import Path

import teaching_modules as modules
import torch
from fnv import fnv1a
from pinned import require_pinned_torch
from safetensors.torch import save_file

SEEDS = (123, 789, 7, 2024, 2**31 + 7)
DROPOUTS = (0.0, 0.1, 0.5)
SMALL = ((3, 2), (5, 4), (16, 16))
LARGE = ((64, 48), (96, 96))
HEADS = {2: (1, 2), 4: (1, 2, 4), 16: (1, 2, 4), 48: (3, 4), 96: (2, 3)}  # by d_out
PLACES = (*itertools.product(SEEDS, SMALL), *itertools.product(SEEDS[:2], LARGE))
SIZE_LIMIT = 600_000


def digest(tensors):
    return fnv1a(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors))


def close(a, b):
    return torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


def run_case(name, kind, seed, options, inputs, padding=None, dropout_seed=None, keep_weights=False):
    """One case: its description, and its tensors by name."""
    torch.manual_seed(seed)
    given = {key: torch.rand(*shape) for key, shape in inputs.items()}
    module = getattr(modules, kind)(**options).train()
    if dropout_seed is not None:
        torch.manual_seed(dropout_seed)
    state = torch.get_rng_state()
    mask = None if padding is None else {"key_padding_mask": torch.tensor(padding)}
    with torch.no_grad():
        output = module(**given, **(mask or {}))
        double = copy.deepcopy(module).double()
        torch.set_rng_state(state)  # Bernoulli draws are the same in every type: the same weights are dropped
        output64 = double(**{key: value.double() for key, value in given.items()}, **(mask or {}))
    assert output.isfinite().all() and close(output, output64), name
    assert close(module.dropped_weights, double.dropped_weights), name

    case = {"name": name, "module": kind, "seed": seed, "options": options, "inputs": inputs}
    tensors = {"output": output, "output64": output64}
    if padding is not None:
        case["key_padding_mask"] = padding
    if dropout_seed is not None:
        case["dropout_seed"] = dropout_seed
    case["inputs_digest"] = digest(given.values())
    if kind == "TorchMultiHead":
        for key, value in module.attention.state_dict().items():
            tensors[f"state.{key}"] = value
    else:
        case["parameters_digest"] = digest(module.parameters())
    if keep_weights:
        tensors |= {"weights": module.weights, "weights64": double.weights}
        if options.get("dropout"):
            tensors |= {"dropped_weights": module.dropped_weights, "dropped_weights64": double.dropped_weights}
    case["tensors"] = sorted(tensors)
    return case, {f"{name}.{key}": value.detach().contiguous() for key, value in tensors.items()}


def padding_of(pattern, batch, tokens):
    """None, a padded end, or holes; the first key always stays."""
    if pattern == 0:
        return None
    if pattern == 1:
        return [[i >= max(1, tokens - 1 - 2 * b) for i in range(tokens)] for b in range(batch)]
    return [[i > 0 and (i + b) % 3 == 0 for i in range(tokens)] for b in range(batch)]


def self_cases():
    for i, (seed, (d_in, d_out)) in enumerate(PLACES):
        tokens = 1 + (7 * i + 4) % 17 if d_in < 64 else 4 + i % 3
        shape = [tokens, d_in] if i % 4 == 0 else [1 + i % 3, tokens, d_in]
        sizes = {"d_in": d_in, "d_out": d_out}
        keep = {"keep_weights": i % 5 == 0}
        yield f"self_matrices_{i:02}", "SelfAttentionMatrices", seed, sizes, {"x": shape}, keep
        yield f"self_linear_{i:02}", "SelfAttentionLinear", seed, sizes | {"qkv_bias": i % 2 == 1}, {"x": shape}, keep


def causal_cases():
    for i, (seed, (d_in, d_out)) in enumerate(PLACES):
        tokens = 1 + (7 * i + 10) % 17 if d_in < 64 else 3 + i % 4
        heads = HEADS[d_out][i // 3 % len(HEADS[d_out])]
        shape = {"x": [1 + (i + i // 3) % 3, tokens, d_in]}
        options = {
            "d_in": d_in,
            "d_out": d_out,
            "context_length": tokens + 3 * (i % 2),
            "dropout": DROPOUTS[(i + 2 * (i // 3)) % 3],
            "qkv_bias": i // 2 % 2 == 1,
        }
        keep = {"keep_weights": i % 4 == 0}
        with_heads = options | {"num_heads": heads}
        yield f"causal_{i:02}", "CausalAttention", seed, options, shape, keep
        yield f"multi_head_{i:02}", "MultiHeadAttention", seed, with_heads, shape, keep
        wrapped = options | {"num_heads": 1 + i % 4 if d_in < 64 else 2}
        yield f"wrapper_{i:02}", "MultiHeadAttentionWrapper", seed, wrapped, shape, keep


def cross_cases():
    source_width = {3: 5, 5: 3, 16: 16, 64: 32, 96: 64}
    for i, (seed, (d_query, d_out)) in enumerate(PLACES):
        batch = 1 + (i + i // 3) % 3
        query_tokens, source_tokens = (1 + (5 * i + 3) % 17, 1 + (11 * i + 8) % 17) if d_query < 64 else (3, 9)
        d_source = source_width[d_query]
        inputs = {"query": [batch, query_tokens, d_query], "source": [batch, source_tokens, d_source]}
        options = {
            "d_query": d_query,
            "d_source": d_source,
            "d_out": d_out,
            "dropout": DROPOUTS[(2 * i + i // 3) % 3],
            "num_heads": HEADS[d_out][i // 2 % len(HEADS[d_out])],
            "qkv_bias": i // 2 % 2 == 0,
        }
        more = {"keep_weights": i % 4 == 1, "padding": padding_of((i + i // 3) % 3, batch, source_tokens)}
        yield f"cross_{i:02}", "CrossAttention", seed, options, inputs, more


def torch_cases():
    sizes = ((4, 1, 5), (6, 3, 7), (16, 4, 17), (48, 4, 6), (24, 2, 1))  # embed_dim, num_heads, tokens
    for i, (embed_dim, heads, tokens) in enumerate(sizes):
        options = {"embed_dim": embed_dim, "num_heads": heads, "bias": i != 1, "dropout": 0.1 if i == 2 else 0.0}
        causal = options | {"causal": True}
        keep = {"keep_weights": not options["dropout"] and i < 2, "dropout_seed": 99 if options["dropout"] else None}
        batch = 1 + i % 3
        query = {"query": [batch, tokens, embed_dim]}
        yield f"torch_causal_{i}", "TorchMultiHead", SEEDS[i], causal, query, keep
        kdim = (3, 6, 10, 20, 24)[i]  # the second and the last as wide as the query: one in_proj_weight
        cross = options | {"causal": False, "kdim": kdim}
        source_tokens = 2 + (5 * i + 6) % 17
        inputs = query | {"source": [batch, source_tokens, kdim]}
        padding = padding_of(i % 3, batch, source_tokens)
        yield f"torch_cross_{i}", "TorchMultiHead", SEEDS[i], cross, inputs, keep | {"padding": padding}


def main():
    made_with = require_pinned_torch()
    cases, tensors = [], {}
    for *case, more in itertools.chain(self_cases(), causal_cases(), cross_cases(), torch_cases()):
        description, results = run_case(*case, **more)
        cases.append(description)
        tensors |= results
    folder = Path(__file__).parent
    save_file(tensors, folder / "modules.safetensors", metadata={"made_with": made_with})
    size = (folder / "modules.safetensors").stat().st_size
    assert size <= SIZE_LIMIT, f"{size} bytes are too many to keep in the repository"
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    (folder / "modules.json").write_text(f'{{"made_with": "{made_with}", "cases": [\n  {lines}\n]}}\n')
    print(len(cases), "cases,", len(tensors), "tensors,", size, "bytes")


if __name__ == "__main__":
    main()
