"""The texts of docs/: every listing, every number and every picture is what the programs make today."""

import json
import pathlib
import re
import subprocess
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
        if kind in ("c", "cpp"):
            assert from_file, f"a C or C++ listing that no file backs:\n{text}"
        elif kind == "console":
            assert text.startswith("$ ")
        else:
            assert kind in ("python", "text"), f"nothing checks a {kind!r} block"


@pytest.mark.parametrize("path", WALKS, ids=name_of)
def test_numbers_of_the_prose_stand_in_a_checked_block(path):
    blocks, prose = split(path)
    checked = "".join(text for _, kind, text in blocks if kind in ("cpp", "console"))
    loose = re.sub(r"https://\S+", "", prose) + "".join(text for _, kind, text in blocks if kind == "text")
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


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for path in walk_refresh.documents():
        for target, anchor in re.findall(r"\]\(([^)#\s]+)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                found = path.parent / target
                assert found.exists(), f"{name_of(path)}: {target}"
                assert not anchor or anchor in anchors(found), f"{name_of(path)}: {target}#{anchor}"


@pytest.mark.parametrize("commands, document, at_least", [(["explain"], "explain.md", 20), (["train", "generate"], "train.md", 30)])
def test_every_option_is_documented(commands, document, at_least, program_dir):
    shown = "".join(subprocess.run([program_dir / "qkv", command, "--help"], capture_output=True, text=True, check=True).stdout
                    for command in commands)
    options = set(re.findall(r"^ +((?:--?[a-z-]+,?)+)", shown, re.MULTILINE))
    names = {name for option in options for name in option.split(",")}
    assert len(names) >= at_least
    rows = re.findall(r"^\| (`-[^|]*(?:\\\|[^|]*)*)", (ROOT / "docs" / document).read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(--?[a-z-]+)", row)}
    assert names == documented


def documented_tensors(stage, sizes, conditions):
    """Name and shape of a stage's tensors by the table of docs/explain.md; `conditions` are the notes that hold."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / "docs/explain.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    header = next(index for index, row in enumerate(rows) if row[0] == "tensor")
    column = rows[header].index(stage)
    tensors = {}
    for row in rows[header + 1:]:
        name = re.match(r"`(\S+)`(?: \((\d)\))?$", row[0])
        if name is None:
            break
        if row[column] != "–" and (name[2] is None or int(name[2]) in conditions):
            letters = row[column].strip("[]").split(", ")
            tensors[name[1]] = [sizes[letter] for letter in letters]
    return tensors


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "bias and dropout"])
@pytest.mark.parametrize("stage", ["simple", "self uniform", "self linear", "causal", "wrapper", "multi-head", "cross"])
def test_tensors_are_the_documented_ones(stage, everything, program_dir, tmp_path):
    sizes = {"T": 5, "Tk": 4, "H": 2, "d_in": 3, "d_source": 7, "d_out": 10, "head_dim": 5, "H · d_out": 20}
    (tmp_path / "source.csv").write_text("1,2,3,4,5,6,7\n" * sizes["Tk"], encoding="utf-8")
    name, _, init = stage.partition(" ")
    options = ["--stage", name, "--tokens", "5", "--dim", "3"]
    options += ["--init", init] if init else []
    options += ["--d-out", "10"] if name != "simple" else []
    options += ["--heads", "2"] if name in ("wrapper", "multi-head", "cross") else []
    options += ["--source-embeddings", str(tmp_path / "source.csv")] if name == "cross" else []
    if everything:
        options += ["--qkv-bias"] if stage not in ("simple", "self uniform") else []
        options += ["--train", "--dropout", "0.5"] if name not in ("simple", "self") else []
    done = subprocess.run([program_dir / "qkv", "explain", "--json", *options], capture_output=True, check=True)
    tensors = json.loads(done.stdout)["stages"][0]["tensors"]
    documented = documented_tensors(stage, sizes, {1, 2} if everything else set())
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == documented
