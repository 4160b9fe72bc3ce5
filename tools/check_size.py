#!/usr/bin/env python3
"""No source file past 500 lines: a longer one is two rooms."""

import pathlib
import subprocess
import sys

LIMIT = 500
KINDS = {".cpp", ".hpp", ".h", ".c", ".inl", ".py", ".js", ".css", ".html", ".cmake"}

root = pathlib.Path(__file__).resolve().parent.parent
listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, check=False)
# A source archive has no git; then every file of the tree counts, but for what was built in it.
names = listed.stdout.decode().split("\0") if listed.returncode == 0 else [
    str(path.relative_to(root)) for path in root.rglob("*") if not {"build", ".venv-test"} & set(path.parts)]
faults = 0
for name in names:
    file = root / name
    if file.suffix in KINDS and file.is_file():
        lines = sum(1 for _ in file.open(encoding="utf-8"))
        if lines > LIMIT:
            print(f"{name}: {lines} lines; expected at most {LIMIT}", file=sys.stderr)
            faults += 1
sys.exit(1 if faults else 0)
