#!/usr/bin/env python3
"""Compares attention with PyTorch on random problems, live.

    python3 compare_attention_torch.py path/to/attention_tool [--cases 300] [--seed 0]

Error rule: infinities in the same places, and error <= 2 x that of PyTorch's plain formula in the same precision, plus a
floor: two roundings of the largest value for out and lse; for gradients four roundings of the largest product of their
factors, because they are differences of larger numbers. For float64, 1e-13 takes the rounding's place. Exits with 1 at the first problem that breaks it.
"""
import argparse
import subprocess
import sys

import torch

from attention_problems import DTYPES, GRADIENTS, answer, answer_shapes, encode, make


def floor_of(name, problem, expected):
    epsilon = torch.finfo(DTYPES[problem["dtype"]][1]).eps / 2
    if problem["dtype"] == "f64":
        epsilon = 1e-13  # the reference is in float64 itself and no more exact than what it judges
    finite = expected[torch.isfinite(expected)].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    if name not in GRADIENTS:
        return 2 * epsilon * max(largest, 1.0)
    products = float((problem["d_out"].norm(dim=-1).max() * problem["v"].norm(dim=-1).max()))
    factor = max(1.0, abs(problem["scale"]) * float(max(problem["q"].abs().max(), problem["k"].abs().max())))
    return 4 * epsilon * max(largest, products * factor)


def compare(problem, got):
    exact = answer(problem, torch.float64)
    plain = answer(problem, DTYPES[problem["dtype"]][1])
    worst = 0.0
    for name, shape in answer_shapes(problem):
        expected, value = exact[name].reshape(shape), got[name].reshape(shape)
        finite = torch.isfinite(expected)
        if not torch.equal(value[~finite], expected[~finite]):
            return f"{name}: infinities or NaN in other places"
        error = float((value - expected)[finite].abs().max()) if finite.any() else 0.0
        honest = float((plain[name].reshape(shape) - expected)[finite].abs().max()) if finite.any() else 0.0
        allowed = 2 * honest + floor_of(name, problem, expected)
        worst = max(worst, error / allowed if allowed else float(error > 0))
        if not error <= allowed:
            return f"{name}: error {error:.3g}, plain {honest:.3g}, allowed {allowed:.3g}"
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.cases} problems from seed {arguments.seed}")
    with subprocess.Popen([arguments.tool], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        worst = 0.0
        for seed in range(arguments.seed, arguments.seed + arguments.cases):
            problem = make(seed)
            tool.stdin.write(encode(problem))
            tool.stdin.flush()
            got = {}
            for name, shape in answer_shapes(problem):
                count = torch.Size(shape).numel()
                data = bytearray(tool.stdout.read(8 * count))
                if len(data) != 8 * count:
                    sys.exit(f"seed {seed}: the tool gave no answer")
                got[name] = torch.frombuffer(data, dtype=torch.float64)
            verdict = compare(problem, got)
            if isinstance(verdict, str):
                settings = {n: v for n, v in problem.items() if not isinstance(v, torch.Tensor)}
                tool.kill()
                sys.exit(f"seed {seed}: {verdict}\n{settings}")
            worst = max(worst, verdict)
        tool.stdin.close()
    print(f"all within the rule; the worst error was {worst:.2f} of what is allowed")


if __name__ == "__main__":
    main()
