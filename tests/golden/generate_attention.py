#!/usr/bin/env python3
"""Makes attention.bin: 24 small problems with PyTorch's float64 answers (torch 2.15.0).

    python3 generate_attention.py

Each problem as tests/support/attention_file.hpp describes it, and after it the answers in the order of answer_shapes,
as float64. Little-endian.
"""
import pathlib
import sys

import torch

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "torch"))
from attention_problems import answer, answer_shapes, encode, make  # noqa: E402



def small(problem):
    """Few tokens, and float32 or float64: the 16-bit types are compared live, against PyTorch's own rounding."""
    widths = max(problem["head_dim"], problem["value_dim"])
    return max(problem["queries"], problem["keys"]) <= 6 and widths <= 12 and problem["dtype"] in ("f32", "f64")


with open(here / "attention.bin", "wb") as file:
    written, seed = 0, 1000
    while written < 24:
        problem = make(seed, most_tokens=6)
        seed += 1
        if not small(problem):
            continue
        written += 1
        file.write(encode(problem))
        exact = answer(problem, torch.float64)
        for name, _ in answer_shapes(problem):
            file.write(exact[name].contiguous().numpy().tobytes())
