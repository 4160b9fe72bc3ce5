"""The texts of docs/: every listing, every number and every picture is what the programs make today."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import walk_pictures  # noqa: E402
import walk_refresh  # noqa: E402

WALKS = sorted((ROOT / "docs/walk").glob("0*.md"))
FENCE = re.compile(r"^(<!-- file: \S+ -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def split(path):
    """The fenced blocks of a document as (from a file, kind, text), and its prose."""
    text = path.read_text(encoding="utf-8")
    return [(bool(m[1]), m[2], m[3]) for m in FENCE.finditer(text)], FENCE.sub("", text)


@pytest.mark.parametrize("path", walk_refresh.documents(), ids=name_of)
def test_listings_and_console_blocks_are_what_runs(path, program_dir):
    text = path.read_text(encoding="utf-8")
    assert text == walk_refresh.refreshed_text(text, program_dir), "run tools/walk_refresh.py and read what changed"


@pytest.mark.parametrize("path", walk_refresh.programs(), ids=name_of)
def test_programs_print_what_their_head_comment_says(path, program_dir):
    source = path.read_text(encoding="utf-8")
    assert "// Prints:\n" in source
    assert source == walk_refresh.refreshed_program(source, path.stem, program_dir)


@pytest.mark.parametrize("path", walk_refresh.documents(), ids=name_of)
def test_every_block_is_of_a_kind_that_is_checked(path):
    for from_file, kind, text in split(path)[0]:
        if kind == "cpp":
            assert from_file, f"a C++ listing that no file backs:\n{text}"
        elif kind == "console":
            assert text.startswith("$ ")
        else:
            assert kind in ("python", "text"), f"nothing checks a {kind!r} block"


@pytest.mark.parametrize("path", WALKS, ids=name_of)
def test_numbers_of_the_prose_stand_in_a_checked_block(path):
    blocks, prose = split(path)
    checked = "".join(text for _, kind, text in blocks if kind in ("cpp", "console"))
    loose = prose + "".join(text for _, kind, text in blocks if kind == "text")
    known = set(re.findall(r"\d+\.\d+", checked))
    for number in re.findall(r"\d+\.\d{3,}", loose):
        assert number in known, f"{number} is in no listing or console block of this text"


@pytest.mark.parametrize("path", WALKS, ids=name_of)
def test_each_walk_has_its_parts(path):
    blocks, prose = split(path)
    kinds = [kind for _, kind, _ in blocks]
    # 00 comes before any module, so it has no PyTorch class beside it.
    assert {"cpp", "console"} | ({"python"} if path.name[:2] != "00" else set()) <= set(kinds)
    assert "](images/" in prose
    questions = prose.split("## Questions learners ask", 1)[1]
    assert len(re.findall(r"^### .*\?$", questions, re.MULTILINE)) >= 3


def test_pictures_are_what_the_program_makes(program_dir, tmp_path):
    walk_pictures.draw_all(program_dir, tmp_path)
    committed = {path.name: path.read_bytes() for path in (ROOT / "docs/walk/images").iterdir()}
    assert committed == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shown = {name for path in WALKS for name in re.findall(r"\(images/([^)]+)\)", path.read_text(encoding="utf-8"))}
    assert shown == set(committed)


def test_links_lead_somewhere():
    for path in walk_refresh.documents():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (path.parent / target).exists(), f"{name_of(path)}: {target}"
