"""Writes random_digests.csv: digests of PyTorch's CPU random numbers. Needs torch==2.15.0 and numpy.

    python3 tests/golden/generate_random.py

A row is: manual_seed(seed), then `repeat` draws of `count` values with parameters a and b, one after another. `digest`
is FNV-1a 64 over the little-endian bytes of all of them, `first` the first values as hexadecimal bits.
"""

import csv
import math
from pathlib import Path

import numpy
import torch
from fnv import fnv1a
from pinned import require_pinned_torch

SEEDS = (0, 123, 789, 2**31 + 7, 2**32 + 5, 2**64 - 1)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FIRST = 4


def words(count):
    """The raw 32-bit stream, out of 64-bit draws that keep every bit: the high word of each was drawn first."""
    pairs = torch.empty(count // 2, dtype=torch.int64).random_(-(2**63), None).numpy().view(numpy.uint64)
    return numpy.stack([pairs >> numpy.uint64(32), pairs & numpy.uint64(0xFFFFFFFF)], -1).astype(numpy.uint32)


def dropout(count, p, dtype):
    return torch.nn.functional.dropout(torch.ones(count, dtype=dtype), p, training=True)


def interleaved(dtype):
    """Odd numbers of scalar normals leave half a pair in the generator; other draws must not touch it."""
    draws = []
    for count in range(1, 71):
        draws += [
            torch.randn(count, dtype=dtype),
            torch.rand(count % 5, dtype=dtype),
            torch.empty(count % 3, dtype=dtype).bernoulli_(0.25),
            torch.empty(count % 7 + 1, dtype=dtype).normal_(-2.5, 0.3),
        ]
    return torch.cat(draws)


def draw(distribution, dtype, count, a, b):
    if distribution == "words":
        return words(count)
    dtype = DTYPES[dtype]
    empty = torch.empty(count, dtype=dtype)
    return {
        "rand": lambda: torch.rand(count, dtype=dtype),
        "randn": lambda: torch.randn(count, dtype=dtype),
        "uniform": lambda: empty.uniform_(a, b),
        "normal": lambda: empty.normal_(a, b),
        "bernoulli": lambda: empty.bernoulli_(a),
        "dropout": lambda: dropout(count, a, dtype),
        "interleaved": lambda: interleaved(dtype),
    }[distribution]().numpy()


def kaiming_bound(fan_in):
    """As torch.nn.init.kaiming_uniform_(a=sqrt(5)), in its order of operations."""
    return math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(fan_in))


def plan():
    """(distribution, dtype, count, repeat, a, b), each drawn for every seed."""
    yield "words", "uint32", 100_000, 1, 0, 0
    for dtype in DTYPES:
        yield "rand", dtype, 99_991, 1, 0, 0
        yield "randn", dtype, 99_991, 1, 0, 0  # blocks of 16, the last redrawn
        yield "randn", dtype, 15, 5_000, 0, 0  # one value at a time
        yield "randn", dtype, 1, 10_001, 0, 0
        yield "randn", dtype, 17, 1_000, 0, 0
        yield "normal", dtype, 20_011, 1, 0.3, 0.02
        yield "normal", dtype, 11, 2_000, 0.3, 0.02
        for fan_in in (3, 64, 100, 768):
            yield "uniform", dtype, 20_011, 1, -kaiming_bound(fan_in), kaiming_bound(fan_in)
            yield "uniform", dtype, 2_003, 1, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)
        # So narrow for its place that sums round up to the excluded end.
        yield "uniform", dtype, 5_003, 1, 2.0**18, 2.0**18 + 1
        yield "uniform", dtype, 5_003, 1, 2.0**47, 2.0**47 + 2.0**25
        yield "bernoulli", dtype, 90_021, 1, 0.9, 0
        yield "bernoulli", dtype, 1, 5_000, 0.3, 0
        for p in (0.1, 0.5):
            yield "dropout", dtype, 50_021, 1, p, 0
        yield "interleaved", dtype, 0, 1, 0, 0


def main():
    made_with = require_pinned_torch()
    path = Path(__file__).with_name("random_digests.csv")
    totals = {}
    with path.open("w", newline="") as file:
        file.write(f"# {made_with}; made by generate_random.py\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow("distribution dtype seed count repeat a b digest first".split())
        for distribution, dtype, count, repeat, a, b in plan():
            for seed in SEEDS:
                torch.manual_seed(seed)
                values = numpy.concatenate([draw(distribution, dtype, count, a, b).ravel() for _ in range(repeat)])
                bits = values.view(f"<u{values.itemsize}")
                first = " ".join(f"{value:0{2 * values.itemsize}x}" for value in bits[:FIRST])
                rows.writerow([distribution, dtype, seed, count, repeat, a, b, fnv1a(bits.tobytes()), first])
                key = distribution, dtype, "one by one" if 0 < count < 16 else "together"
                totals[key] = totals.get(key, 0) + values.size
    for key, total in totals.items():
        print(*key, total)


if __name__ == "__main__":
    main()
