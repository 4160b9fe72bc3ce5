"""What the browser tests stand on: a program that makes pages, Debian's Chromium, and a page that is watched.

    pytest tests/viewer --render build/release/bin/render_page [--program build/release/bin/qkv] [--shots DIR] -rs

Where the browser or its driver is missing, the tests are skipped and say which (-rs prints it).
"""

import json
import os
import pathlib
import shutil
import subprocess

import make_sample
import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

ROOT = pathlib.Path(__file__).resolve().parents[2]
VIEWPORT = {"width": 1280, "height": 720}


def pytest_addoption(parser):
    parser.addoption("--render", default=str(ROOT / "build/release/bin/render_page"), help="the test program render_page")
    parser.addoption("--program", default=None, help="the program qkv: its own pages are tested too")
    parser.addoption("--shots", default=None, help="a folder for screenshots")


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium")
    if sync_playwright is None:
        pytest.skip("playwright is not installed: pip install -r tests/requirements.txt")
    if chromium is None:
        pytest.skip("no chromium in PATH: apt-get install chromium")
    with sync_playwright() as driver:
        # Chromium's sandbox refuses to run as root, which is what containers have.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        instance = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield instance
        instance.close()


class Pages:
    """The sample documents and their files, each made once."""

    def __init__(self, render, folder):
        self.render, self.folder, self.documents = render, folder, {}

    def document(self, name):
        if name not in self.documents:
            self.documents[name] = make_sample.make(name)
        return self.documents[name]

    def file(self, name):
        path = self.folder / f"{name}.html"
        if not path.exists():
            self.write(path, json.dumps(self.document(name), ensure_ascii=False))
        return path

    def write(self, path, text):
        result = subprocess.run([self.render], input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
        path.write_bytes(result.stdout)
        return path


@pytest.fixture(scope="session")
def pages(request, tmp_path_factory):
    render = request.config.getoption("--render")
    if not pathlib.Path(render).exists():
        pytest.fail(f"--render: {render} does not exist; build the target render_page")
    return Pages(render, tmp_path_factory.mktemp("pages"))


@pytest.fixture
def open_page(browser):
    """Opens a file and watches it: a request that leaves the file, or an error, fails the test at its end.

    With expect_errors a request may be tried, but the page's policy must have blocked it.
    """
    contexts, troubles = [], []

    def open_one(path, hash_="", *, expect_errors=False, **options):
        context = browser.new_context(**{"viewport": VIEWPORT, "accept_downloads": True} | options)
        contexts.append(context)
        page = context.new_page()

        def asked(request):
            if not request.url.startswith(("file:", "data:", "blob:")):
                troubles.append(f"request to {request.url}")

        def blocked(request):
            trouble = f"request to {request.url}"
            if expect_errors and "csp" in request.failure.lower() and trouble in troubles:
                troubles.remove(trouble)

        page.on("request", asked)
        page.on("requestfailed", blocked)
        if not expect_errors:
            page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
            page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(path.as_uri() + hash_)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert troubles == []
