"""The PyTorch listings of docs/ print what their comments say."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LISTINGS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A text whose listings import the Python package is run by the package's own tests (python/tests/test_package.py).
PACKAGE = re.compile(r"^(?:import|from)\b.*\bqkv\b", re.MULTILINE)
TEXTS = [path for path in sorted((ROOT / "docs").rglob("*.md"))
         if (listings := LISTINGS.findall(path.read_text(encoding="utf-8"))) and not PACKAGE.search("".join(listings))]


def test_every_module_has_a_listing():
    assert {"01", "02", "03", "04", "05"} <= {path.name[:2] for path in TEXTS}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_listing_prints_what_it_says(path):
    # The listings of one text build on each other; a comment "# -> ..." follows each print.
    source = "".join(LISTINGS.findall(path.read_text(encoding="utf-8")))
    said = re.findall(r"^# -> (.*)$", source, re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said
    assert done.stdout.splitlines() == said
