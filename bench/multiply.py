"""The products of a linear layer beside torch's, in turns: x Wᵀ, d_y W and d_yᵀ x for x [m, k] and W [n, k]."""

import json
import statistics
import subprocess
import time

import torch

SHAPES = ((8192, 768, 768), (8192, 768, 2304), (8192, 768, 3072), (2048, 128, 512), (2048, 512, 512), (64, 768, 768),
          (1, 768, 768), (1, 768, 3072))
ROUNDS = 5


def torch_products(m, k, n):
    x, w, d_y = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
    y, d_x, d_w = torch.empty(m, n), torch.empty(m, k), torch.empty(n, k)
    return {"x W^T": lambda: torch.mm(x, w.t(), out=y), "d_y W": lambda: torch.mm(d_y, w, out=d_x),
            "d_y^T x": lambda: torch.mm(d_y.t(), x, out=d_w)}


def seconds_of(run, budget):
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        if time.perf_counter() - start > 1e-3:
            break
        calls *= 2
    times = []
    while sum(times) < budget or len(times) < 3:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / calls


def compare(program, peaks_program, counts, seconds):
    """Lines of a Markdown table; GFLOP/s, medians over the rounds."""
    lines = ["| product | m × k × n | threads | qkv | torch | qkv / torch | of the multiply-add peak |",
             "|---|---|---|---|---|---|---|"]
    for threads in counts:
        torch.set_num_threads(threads)
        peak = json.loads(subprocess.run([peaks_program, str(threads)], check=True, capture_output=True,
                                         text=True).stdout)["fma_gflops"]
        for m, k, n in SHAPES:
            budget = seconds / ROUNDS / 6
            theirs = torch_products(m, k, n)
            rates = {name: ([], []) for name in theirs}
            for _ in range(ROUNDS):
                done = subprocess.run([program, str(m), str(k), str(n), "--threads", str(threads), "--seconds",
                                       str(budget)], check=True, capture_output=True, text=True)
                for line in done.stdout.splitlines():
                    found = json.loads(line)
                    rates[found["product"]][0].append(found["gflops"])
                    run = theirs[found["product"]]
                    rates[found["product"]][1].append(2 * m * k * n / seconds_of(run, budget) / 1e9)
            for name, (own, other) in rates.items():
                ratio = statistics.median(a / b for a, b in zip(own, other))
                share = f"{statistics.median(own) / peak:.0%}" if peak else "–"
                lines.append(f"| {name} | {m} × {k} × {n} | {threads} | {statistics.median(own):.1f} | "
                             f"{statistics.median(other):.1f} | {ratio:.2f} | {share} |")
    return lines
