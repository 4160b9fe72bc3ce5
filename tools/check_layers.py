#!/usr/bin/env python3
"""Includes point down the list of rooms, or sideways into core; never up. Apps speak only to include/qkv."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Rooms of src/, lowest first. A room may include itself and whatever stands before it.
ROOMS = ["core", "kernels", "attention", "nn", "io", "text", "models", "explain", "c_api"]
# Beside each other, not above: neither may include the other.
BESIDE = {("io", "nn"), ("io", "attention"), ("io", "kernels"), ("text", "nn"), ("text", "attention"), ("text", "io")}
# Public headers belong to the room that implements them.
PUBLIC = {
    "error.hpp": "core", "tensor.hpp": "core", "random.hpp": "core", "trace.hpp": "core", "types.hpp": "core",
    "view.hpp": "core", "instruction_set.hpp": "core", "runtime.hpp": "core", "mask.hpp": "attention", "attention.hpp": "attention", "score_function.hpp": "attention", "kv_cache.hpp": "attention",
    "rope.hpp": "attention",
    "nn.hpp": "nn", "io.hpp": "io", "text.hpp": "text", "models.hpp": "models", "explain.hpp": "explain", "export.h": "core", "qkv.h": "c_api",
    "qkv_generation.h": "c_api",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def room_of_include(path):
    """The room that an include path names, or None for a file of the same folder."""
    parts = path.split("/")
    if parts[0] == "qkv":
        if len(parts) > 2:
            return parts[1] if parts[1] in ROOMS else sys.exit(f"qkv/{parts[1]} is no room of {ROOMS}")
        return PUBLIC.get(parts[1], "umbrella")
    return parts[0] if parts[0] in ROOMS else None


def main():
    faults = []
    for file in sorted([*ROOT.glob("src/**/*.[ch]pp"), *ROOT.glob("apps/**/*.[ch]pp")]):
        relative = file.relative_to(ROOT)
        room = relative.parts[1] if relative.parts[0] == "src" else "apps"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found = INCLUDE.match(line)
            if not found:
                continue
            path = found.group(1)
            target = room_of_include(path)
            where = f"{relative}:{number}: includes {path}"
            if room == "apps":
                if target is not None and not path.startswith("qkv/"):
                    faults.append(f"{where}; the program speaks only to include/qkv")
            elif target == "umbrella":
                faults.append(f"{where}; name the header that is needed, not the umbrella")
            elif target is not None and target != room:
                if ROOMS.index(target) > ROOMS.index(room):
                    faults.append(f"{where}; {target} is above {room}")
                elif (room, target) in BESIDE or (target, room) in BESIDE:
                    faults.append(f"{where}; {target} is beside {room}")
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


main()
