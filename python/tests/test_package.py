"""What the installed package is made of."""

import doctest
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import qkv
import qkv.nn


@pytest.mark.parametrize("module", [qkv, qkv.nn], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_the_examples_of_the_extension():
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner()
    for name in ("attention", "Generator", "KvCache", "Rope"):
        text = getattr(qkv, name).__doc__
        assert ">>>" in text
        runner.run(doctest.DocTestParser().get_doctest(text, {}, name, None, 0))
    assert finder and runner.summarize().failed == 0


def test_the_listings_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (pathlib.Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    listings = [code for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
                if "qkv.torch" not in code]
    assert len(listings) == 3
    token = np.ones((1, 2, 1, 64), np.float32)
    names = {"steps": [(token.repeat(2, 1), token, token), (token[:, [0] * 8], token, token)]}
    for code in listings:
        exec(compile(code, "docs/python.md", "exec"), names)
    assert names["trace"].keys() > {"queries", "keys", "values"} and names["context"].shape == (1, 8, 1, 64)


def test_importing_loads_neither_numpy_nor_torch():
    code = "import sys, qkv; sys.exit(bool({'numpy', 'torch', 'ml_dtypes'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_type_checks(tmp_path):
    folder = pathlib.Path(qkv.__file__).parent
    assert (folder / "py.typed").exists()
    # PyTorch is not installed here: its classes and decorators have no types.
    found = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports",
                            "--allow-subclassing-any", "--allow-untyped-decorators", "--cache-dir", str(tmp_path),
                            "-p", "qkv"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("command", [["-m", "qkv"], [str(pathlib.Path(sys.executable).with_name("qkv"))]],
                         ids=["module", "script"])
def test_the_program_comes_with_it(command):
    if command[0] == "-m":
        command = [sys.executable, *command]
    shown = subprocess.run([*command, "explain", "--stage", "simple"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "attention without weights" in shown.stdout
    refused = subprocess.run([*command, "explain", "--no-such-option"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "no-such-option" in refused.stderr
