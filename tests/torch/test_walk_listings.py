"""The PyTorch listings of docs/walk print what their comments say."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LISTINGS = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WALKS = [path for path in sorted((ROOT / "docs/walk").glob("0*.md")) if LISTINGS.search(path.read_text(encoding="utf-8"))]


def test_every_module_has_a_listing():
    assert [path.name[:2] for path in WALKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", WALKS, ids=lambda path: path.name)
def test_listing_prints_what_it_says(path):
    # The listings of one text build on each other; a comment "# -> ..." follows each print.
    source = "".join(LISTINGS.findall(path.read_text(encoding="utf-8")))
    said = re.findall(r"^# -> (.*)$", source, re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said
    assert done.stdout.splitlines() == said
