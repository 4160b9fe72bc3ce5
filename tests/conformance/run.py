#!/usr/bin/env python3
"""Runs other people's suites through the Python package and writes the counts into a Markdown file.

    python3 run.py docs/conformance.md [--long] [--seed 0]

Run by ./dev conformance. Exits with 1 where a case misses.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torch"))

import onnx_suite  # noqa: E402
import opinfo_suite  # noqa: E402
import random_suite  # noqa: E402
import sdpa_suite  # noqa: E402
import torch  # noqa: E402

ABOUT = """\
# Conformance

What suites that others wrote, and PyTorch itself, say of qkv. Written by `./dev conformance{option}`; do not edit.

Made with {made}.

The suites run through the installed Python package: `qkv.attention_with`, `qkv.attention_backward` and `qkv.Rope` for
ONNX's operators and the second set of random problems, the drop-in `qkv.torch.scaled_dot_product_attention` with
`exact_dropout` for the rest. The adapters are in `tests/conformance/`. `./dev test` holds the same ground without onnx
and torch: ONNX's 101 cases from committed files (`test_onnx_cases.cpp`, `test_rope_golden.cpp`), 1,000 random problems
against a float64 oracle, PyTorch's answers from committed files.

"""


def report(tallies, option, packages):
    text = ABOUT.format(option=option, made=packages)
    text += "| suite | cases | pass | judged by |\n|---|---:|---:|---|\n"
    for tally in tallies:
        text += f"| {tally.title} | {tally.cases:,} | {tally.passed:,} | {tally.judged_by} |\n"
    text += "\nThe error rule is that of [numerics.md](numerics.md): at most twice the error of PyTorch's plain formula in the same\n"
    text += "type, plus a floor; infinities in the same places.\n"
    for tally in tallies:
        paragraphs = [textwrap.fill(note, 120, break_on_hyphens=False) for note in tally.notes]
        if tally.misses:
            paragraphs.append("\n".join(["Misses:", ""] + [f"- `{name}`: {reason}" for name, reason in tally.misses]))
        if paragraphs:
            text += "\n\n".join([f"\n## {tally.title}", *paragraphs]) + "\n"
    return text


def instruction_set():
    """The one that qkv runs on here: 16-bit results differ between sets."""
    info = subprocess.run([sys.executable, "-m", "qkv", "info"], capture_output=True, text=True, check=True).stdout
    return re.search(r"^ *(\w+) +used", info, re.MULTILINE).group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--long", action="store_true", help="10,000 random problems of each kind, the whole grids")
    parser.add_argument("--seed", type=int, default=0, help="of the first random problem")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # for small problems more only wait; qkv.attention's random ones draw their number
    cases = 10_000 if arguments.long else 1_000
    suites = (onnx_suite.run, lambda: opinfo_suite.run(arguments.long), lambda: sdpa_suite.run(arguments.long),
              lambda: random_suite.run(cases, arguments.seed))
    tallies = []
    for suite in suites:
        start = time.monotonic()
        for tally in suite():
            tallies.append(tally)
            print(f"{tally.title}: {tally.passed} of {tally.cases}", *tally.notes, sep="\n    ")
            for name, reason in tally.misses:
                print(f"    MISS {name}: {reason}")
        print(f"    ({time.monotonic() - start:.0f} s)", flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("qkv", "onnx", "torch", "numpy"))
    packages += f", Python {platform.python_version()}; instruction set {instruction_set()}"
    option = " --long" * arguments.long
    temporary = arguments.report.with_suffix(".tmp")
    temporary.write_text(report(tallies, option, packages), encoding="utf-8")
    os.replace(temporary, arguments.report)
    sys.exit(any(tally.misses for tally in tallies))


if __name__ == "__main__":
    main()
