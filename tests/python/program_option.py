"""--program-dir, the option that all Python tests share."""

import pathlib

import pytest


def pytest_addoption(parser):
    parser.addoption("--program-dir", type=pathlib.Path, help="where the built programs are: build/release/bin")


@pytest.fixture(scope="session")
def program_dir(request):
    directory = request.config.getoption("--program-dir")
    if directory is None:
        pytest.fail("--program-dir is missing: say where the built programs are (build/release/bin)")
    return directory.resolve()
