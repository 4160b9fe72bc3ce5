#!/usr/bin/env python3
"""Compares attention with PyTorch on random problems, live.

    python3 compare_attention_torch.py path/to/attention_tool [--cases 300] [--seed 0]

Judged by error_rule.py. Exits with 1 at the first problem that breaks the rule.
"""
import argparse
import subprocess
import sys

import torch

from attention_problems import DTYPES, answer, answer_shapes, encode, make
from error_rule import judge


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
            verdict = judge(problem, got, answer(problem, torch.float64), answer(problem, DTYPES[problem["dtype"]]))
            if isinstance(verdict, str):
                settings = {n: v for n, v in problem.items() if not isinstance(v, torch.Tensor)}
                tool.kill()
                sys.exit(f"seed {seed}: {verdict}\n{settings}")
            worst = max(worst, verdict)
        tool.stdin.close()
    print(f"all within the rule; the worst error was {worst:.2f} of what is allowed")


if __name__ == "__main__":
    main()
