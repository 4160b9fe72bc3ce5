"""What the tests of `qkv train` and `qkv generate` share. Nothing here comes from qkv."""

import pathlib
import random
import subprocess

TIMEOUT = 120
TINY = ["--context", "8", "--layers", "2", "--heads", "2", "--dim", "8", "--batch", "4", "--eval-every", "10",
        "--threads", "1"]


def write_text(path: pathlib.Path, words=600, seed=1):
    """A small text that can be learned a little."""
    draw = random.Random(seed)
    text = " ".join(draw.choice(["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]) for _ in range(words))
    path.write_text(text, encoding="utf-8")
    return path


def run(program, *arguments, **options):
    """The finished process, its output as bytes."""
    command = [part if isinstance(part, bytes) else str(part) for part in (program, *arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False,
                          **options)


def train(program, *arguments, **options):
    """A training that must succeed; what it said."""
    done = run(program, "train", *arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    return done.stderr.decode()


def refused(program, arguments, status, *parts, **options):
    """The one line with which the program refuses, which must hold every part."""
    done = run(program, *arguments, **options)
    message = done.stderr.decode().splitlines()[-1] if done.stderr else ""
    assert done.returncode == status, (done.returncode, done.stderr.decode())
    assert message.startswith("qkv: "), done.stderr.decode()
    for part in parts:
        assert str(part) in message, (part, message)
    return message
