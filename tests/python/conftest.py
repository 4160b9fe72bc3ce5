"""Options of the Python tests."""

from program_option import program_dir, pytest_addoption  # noqa: F401
