"""What the comparison shares with the other Python tests: their option, their reader, and the golden modules."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "python"), str(TESTS / "golden")]

from program_option import program_dir, pytest_addoption  # noqa: E402, F401
