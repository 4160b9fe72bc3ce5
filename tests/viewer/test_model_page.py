"""The page of a trained model: its layers as stages, beginning with the chosen head."""

import pathlib
import subprocess

import pytest

MODEL = pathlib.Path(__file__).resolve().parents[2] / "docs/walk/reverse.safetensors"


@pytest.fixture
def model_page(request, tmp_path):
    program = request.config.getoption("--program")
    if program is None:
        pytest.skip("no --program given: pages of the real program are not tested")

    def write(*options):
        path = tmp_path / "page.html"
        subprocess.run([program, "explain", "--model", MODEL, "badcab>bac", *options, "--html", path], check=True,
                       capture_output=True)
        return path

    return write


def test_it_begins_with_the_chosen_head(open_page, model_page):
    page = open_page(model_page("--head", "2", "--query", ">"))
    assert page.evaluate("[qkv.state.head, qkv.state.query]") == [1, 6]
    assert page.locator("#stage-title").inner_text() == "layer 1"
    facts = page.locator("#stage-facts").inner_text()
    assert " · reverse.safetensors · After > the model expects b " in facts
    assert "seed" not in page.locator("body").inner_text()
    assert "head=" not in page.evaluate("location.hash")  # what the page begins with anyway
    page.keyboard.press("[")
    assert page.evaluate("qkv.state.head") == 0
    assert "head=1&" in page.evaluate("location.hash")
    page.reload()
    assert page.evaluate("qkv.state.head") == 0


def test_without_a_choice_with_the_first(open_page, model_page):
    page = open_page(model_page())
    assert page.evaluate("[qkv.state.head, qkv.state.query]") == [0, 9]
