"""A small GPT that learns, beside the same one in torch, eager and compiled: the same data and steps, in turns."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

TEXT = "/usr/share/common-licenses/GPL-3"
SHAPES = (
    # what `qkv train` trains when nothing else is said
    {"context": 64, "layers": 4, "heads": 4, "dim": 64, "batch": 16, "dropout": 0.1},
    {"context": 64, "layers": 4, "heads": 4, "dim": 64, "batch": 16, "dropout": 0.0},
    {"context": 256, "layers": 4, "heads": 4, "dim": 128, "batch": 16, "dropout": 0.1},
    {"context": 256, "layers": 6, "heads": 6, "dim": 384, "batch": 8, "dropout": 0.1},
    {"context": 1024, "layers": 6, "heads": 6, "dim": 384, "batch": 2, "dropout": 0.0},
)
ROUNDS, WARM_UP = 7, 3


class Contender:
    """A process that takes steps when it is told to."""

    def __init__(self, command, shape, threads):
        arguments = [str(part) for name, value in shape.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [str(part) for part in command] + arguments + ["--seed", "123", "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        self.start = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: {self.process.args[0]} ended with {self.process.wait()}")
        return json.loads(line)

    def steps(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def time_shape(commands, shape, threads, seconds):
    """{name: (seconds a step in each round, peak MiB, MiB more than before the first step, first losses)}"""
    ready = {name: Contender(command, shape, threads) for name, command in commands.items()}
    parameters = {contender.start["parameters"] for contender in ready.values()}
    if len(parameters) != 1:
        raise SystemExit(f"bench: the models have {parameters} parameters; expected the same")
    first = {name: contender.steps(WARM_UP) for name, contender in ready.items()}
    turn = {name: contender.steps(2)["seconds"] / 2 for name, contender in ready.items()}
    count = max(1, round(seconds / ROUNDS / sum(turn.values())))
    times = {name: [] for name in ready}
    names = list(ready)
    last = {}
    for index in range(ROUNDS):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            last[name] = ready[name].steps(count)
            times[name].append(last[name]["seconds"] / count)
    for contender in ready.values():
        contender.end()
    return parameters.pop(), {name: (times[name], last[name]["peak_mib"],
                                     last[name]["peak_mib"] - ready[name].start["peak_mib"], first[name]["losses"])
                              for name in names}


def check_losses(shape, found):
    """Without dropout they learn the same from the same seed, so the first losses are the same but for rounding."""
    own = found["qkv"][3]
    for name, (_, _, _, losses) in found.items():
        far = max(abs(a - b) / b for a, b in zip(own, losses))
        # With dropout each draws its own elements.
        if far > (1e-4 if shape["dropout"] == 0 else 0.05):
            raise SystemExit(f"bench: losses of qkv {own} and {name} {losses}; expected the same")


def compare(program, counts, seconds):
    """Lines of a Markdown table; medians over the rounds."""
    worker = pathlib.Path(__file__).with_name("torch_training.py")
    commands = {"qkv": [program, TEXT], "torch eager": [sys.executable, worker, TEXT, "--way", "eager"],
                "torch.compile": [sys.executable, worker, TEXT, "--way", "compile"]}
    lines = ["| context | layers × heads | width | batch | dropout | parameters | threads | qkv, tokens/s | torch eager "
             "| torch.compile | qkv / the faster | peak MiB: qkv | eager | compile |", "|---" * 14 + "|"]
    for threads in counts:
        for shape in SHAPES:
            parameters, found = time_shape(commands, shape, threads, seconds)
            check_losses(shape, found)
            tokens = shape["batch"] * shape["context"]
            rates = [f"{tokens / statistics.median(times):,.0f}" for times, *_ in found.values()]
            ratio = statistics.median(min(theirs) / own for own, *theirs in zip(*(times for times, *_ in found.values())))
            peaks = [f"{peak:.0f} (+{more:.0f})" for _, peak, more, _ in found.values()]
            lines.append(f"| {shape['context']} | {shape['layers']} × {shape['heads']} | {shape['dim']} | {shape['batch']} | "
                         f"{shape['dropout']} | {parameters:,} | {threads} | {' | '.join(rates)} | **{ratio:.2f}** | "
                         f"{' | '.join(peaks)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines
