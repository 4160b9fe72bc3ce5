#!/usr/bin/env python3
"""Puts what programs and commands really print into docs/ and examples/: python3 tools/walk_refresh.py

Three things are re-made, each in its place:
- the "Prints:" part of the head comment of every examples/*.cpp and c/*.c, by running the program;
- every fenced block of docs/**/*.md after a line <!-- file: PATH -->, by reading the file;
- every ```console block, by running its lines that start with "$ ".
The tests do the same in memory and compare; nothing else may stand in the files.
"""

import argparse
import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
LISTING = re.compile(r"(<!-- file: (\S+) -->\n```\w+\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"(^```console\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^//\n// Prints:\n(?://.*\n)*", re.MULTILINE)
TIMED = re.compile(r"\d+\.\d ms")  # a time of this machine, this once


def run_commands(commands, program_dir):
    """What bash prints for each command, errors included, in a folder of its own kind: the repository's root."""
    # Separated by a character that no command prints; the status stays readable for `echo $?`.
    script = "".join(f"{command}\nstatus=$?; printf '\\036'; (exit $status)\n" for command in commands)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    environment["PATH"] = f"{program_dir}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode().split("\036")[:-1]


def refreshed_console(block, program_dir):
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    shown = "".join(f"$ {command}\n{printed}" for command, printed in zip(commands, run_commands(commands, program_dir)))
    # A new time alone is no change.
    return block if TIMED.sub("", block) == TIMED.sub("", shown) else shown


def refreshed_text(text, program_dir):
    """`text` of a document with its listings and console blocks as they are today."""
    text = LISTING.sub(lambda m: m[1] + (ROOT / m[2]).read_text(encoding="utf-8") + m[4], text)
    return CONSOLE.sub(lambda m: m[1] + refreshed_console(m[2], program_dir) + m[3], text)


def refreshed_program(source, name, program_dir):
    """`source` of the program `name` with its output as it is today in its head comment."""
    printed = subprocess.run([program_dir / name], capture_output=True, check=True).stdout.decode()
    comment = "//\n// Prints:\n" + "".join(f"//   {line}".rstrip() + "\n" for line in printed.splitlines())
    if PRINTS.search(source):
        return PRINTS.sub(lambda m: comment, source, count=1)
    first, rest = source.split("\n", 1)
    return f"{first}\n{comment}{rest}"


def programs():
    return sorted([*(ROOT / "examples").glob("*.cpp"), *(ROOT / "examples").glob("c/*.c")])


def documents():
    return sorted((ROOT / "docs").rglob("*.md"))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--program-dir", type=pathlib.Path, default=ROOT / "build/release/bin")
    folder = arguments.parse_args().program_dir.resolve()
    for path in programs():
        path.write_text(refreshed_program(path.read_text(encoding="utf-8"), path.stem, folder), encoding="utf-8")
    for path in documents():
        path.write_text(refreshed_text(path.read_text(encoding="utf-8"), folder), encoding="utf-8")
