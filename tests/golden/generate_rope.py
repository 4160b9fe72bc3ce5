"""Writes rope.safetensors and rope.json: rotary embeddings by Hugging Face. Needs torch==2.15.0, transformers==5.23.0,
safetensors.

    python3 tests/golden/generate_rope.py

README.md beside this file describes both.
"""

import json
from pathlib import Path

import torch
import transformers
from pinned import require_pinned_torch
from safetensors.torch import save_file
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as turn_interleaved
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turn_half_split

TRANSFORMERS = "5.23.0"
POSITIONS = (0, 1, 2, 17, 63)
HEADS = 2

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# name, head_dim, base, scaling, length that a dynamic scaling sees
CASES = (
    ("plain_16", 16, 10000.0, {"rope_type": "default"}, 64),
    ("plain_128", 128, 500000.0, {"rope_type": "default"}, 64),
    ("partial", 32, 10000.0, {"rope_type": "default", "partial_rotary_factor": 0.25}, 64),
    ("linear", 24, 10000.0, {"rope_type": "linear", "factor": 2.5}, 64),
    ("dynamic_short", 16, 10000.0, {"rope_type": "dynamic", "factor": 3.0}, 64),
    ("dynamic_long", 16, 10000.0, {"rope_type": "dynamic", "factor": 3.0}, 200),
    ("yarn", 64, 10000.0, YARN, 64),
    ("yarn_not_truncated", 64, 10000.0, YARN | {"truncate": False, "beta_fast": 3.0, "beta_slow": 0.5}, 64),
    ("yarn_attention_factor", 16, 150000.0, YARN | {"attention_factor": 1.25}, 64),
    ("yarn_mscale", 64, 10000.0, YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.2}, 64),
    # 6 tokens turn less than once: the ramp begins and ends at pair 0.
    ("yarn_step", 16, 10000.0, YARN | {"original_max_position_embeddings": 6}, 64),
    # Pairs that turn once lie past the last one there is.
    ("yarn_small_base", 16, 10.0, YARN | {"original_max_position_embeddings": 4096, "beta_fast": 300.0}, 64),
    ("llama3", 64, 10000.0, LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 64}, 64),
    ("llama3_2", 128, 500000.0, LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}, 64),
)


def run_case(name, head_dim, base, scaling, length):
    parameters = {"rope_theta": base} | scaling
    config = transformers.LlamaConfig(
        hidden_size=HEADS * head_dim,
        num_attention_heads=HEADS,
        head_dim=head_dim,
        max_position_embeddings=64,
        rope_parameters=dict(parameters),
    )
    if name == "partial":  # Llama itself turns whole heads; its frequencies for a head of the turned columns
        config.head_dim = int(head_dim * scaling["partial_rotary_factor"])
    embedding = LlamaRotaryEmbedding(config)
    if length > 64:
        embedding(torch.zeros(1), torch.tensor([[length - 1]]))  # grows the frequencies to this length
    inv_freq = embedding.inv_freq
    rotary_dim = 2 * len(inv_freq)
    positions = torch.tensor([POSITIONS])
    # What the embedding's forward does, without its new look at the length.
    angles = positions[..., None].float() * inv_freq
    cos, sin = (part * embedding.attention_scaling for part in (angles.cos(), angles.sin()))
    x = torch.randn(1, HEADS, len(POSITIONS), head_dim)
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    half_split, _ = turn_half_split(turned, turned, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    interleaved = turn_interleaved(turned.transpose(1, 2), sin, cos).transpose(1, 2)
    described = {
        "name": name,
        "head_dim": head_dim,
        "rotary_dim": rotary_dim,
        "length": length,
        "attention_factor": float(embedding.attention_scaling),
        "parameters": parameters,
    }
    tensors = {
        "inv_freq": inv_freq,
        "x": x,
        "half_split": torch.cat([half_split, rest], -1),
        "interleaved": torch.cat([interleaved, rest], -1),
    }
    return described, {f"{name}.{key}": value.contiguous() for key, value in tensors.items()}


def llama_attention():
    """One layer's attention of a Llama: 4 heads that share 2 key heads, 2 sequences of 7 tokens, in float64 but for the
    cosines and sines."""
    config = transformers.LlamaConfig(
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="eager",
        rope_parameters={"rope_theta": 10000.0} | LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 32},
    )
    attention = LlamaAttention(config, layer_idx=0).double().eval()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    angles = LlamaRotaryEmbedding(config)(x, torch.arange(7)[None])
    hidden = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        output, _ = attention(x, position_embeddings=angles, attention_mask=hidden)
    named = {"q": "W_query", "k": "W_key", "v": "W_value", "o": "out_proj"}
    state = {f"{named[key[0]]}.weight": value for key, value in attention.state_dict().items()}
    tensors = {"x": x, "output": output} | {f"state.{key}": value for key, value in state.items()}
    return {f"llama_attention.{key}": value.contiguous() for key, value in tensors.items()}


def main():
    made_with = require_pinned_torch()
    if transformers.__version__ != TRANSFORMERS:
        raise SystemExit(f"needs transformers=={TRANSFORMERS}, found {transformers.__version__}")
    made_with += f", transformers {TRANSFORMERS}"
    torch.manual_seed(123)
    cases, tensors = [], {}
    for case in CASES:
        described, results = run_case(*case)
        cases.append(described)
        tensors |= results
    tensors |= llama_attention()
    folder = Path(__file__).parent
    save_file(tensors, folder / "rope.safetensors", metadata={"made_with": made_with})
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    head = f'{{"made_with": "{made_with}", "original_context": 64, "positions": {list(POSITIONS)}, "cases": [\n  '
    (folder / "rope.json").write_text(f"{head}{lines}\n]}}\n")
    print(len(cases), "cases,", (folder / "rope.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
