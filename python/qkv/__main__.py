"""`qkv` and `python -m qkv`: the program that comes with the package."""

import os
import pathlib
import sys


def main() -> None:
    program = str(pathlib.Path(__file__).with_name("bin") / "qkv")
    try:
        os.execv(program, ["qkv", *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"qkv: cannot run {program}: {error.strerror}")


if __name__ == "__main__":
    main()
