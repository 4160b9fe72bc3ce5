"""The library as its users find it: find_package, add_subdirectory and pkg-config, static and shared."""

import pathlib
import re
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONSUMER = ROOT / "tests" / "consumer"
PRINTED = "-0.5874 0.0058\n"
C_PROGRAM = ROOT / "examples" / "c" / "recall.c"
C_PRINTED = "".join(line.removeprefix("//   ") for line in C_PROGRAM.read_text(encoding="utf-8").splitlines(True)
                    if line.startswith("//   "))


def test_public_headers_export_what_they_declare():
    """The library's symbols are hidden but for what QKV_EXPORT names: a namespace without it is one that nests another
    with it, or the library's own."""
    for header in sorted((ROOT / "include" / "qkv").glob("**/*.hpp")):
        text = header.read_text(encoding="utf-8")
        for name, attribute in re.findall(r"^namespace ([\w:]+) (QKV_EXPORT )?\{", text, re.MULTILINE):
            nested = re.search(rf"^namespace {name} \{{\nnamespace \w+ QKV_EXPORT", text, re.MULTILINE)
            assert attribute or nested or name == "detail" or header.name == "explain.hpp", f"{header}: {name}"


def run(*command, **keywords):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **keywords)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A project with the library in a subdirectory, shared: that way the library is alone, and needs neither CLI11 nor
    fmt nor GoogleTest. Not optimised: it compiles in half the time."""
    folder = tmp_path_factory.mktemp("beside")
    run("cmake", "-S", CONSUMER / "add_subdirectory", "-B", folder, "-G", "Ninja", "-DBUILD_SHARED_LIBS=ON",
        "-DQKV_INSTALL=ON")
    run("cmake", "--build", folder)
    return folder


@pytest.fixture(scope="module", params=["static", "shared"])
def prefix(request, tmp_path_factory, program_dir):
    """The library installed: static as it was built for these tests, shared as the project above built it."""
    if request.param == "shared":
        build = request.getfixturevalue("beside")
    else:
        build = program_dir.parent
        if not re.search(r"^QKV_SANITIZE:\w+=$", (build / "CMakeCache.txt").read_text(encoding="utf-8"), re.MULTILINE):
            pytest.skip("a program that links a library with sanitizers needs them too")
    folder = tmp_path_factory.mktemp(request.param)
    run("cmake", "--install", build, "--prefix", folder)
    return folder


def library_folder(prefix):
    return next(prefix.glob("lib*/**/libqkv.*")).parent


def test_find_package(prefix, tmp_path):
    run("cmake", "-S", CONSUMER / "find_package", "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    assert run(tmp_path / "consumer", cwd=tmp_path) == PRINTED


def test_pkg_config(prefix, tmp_path):
    libraries = library_folder(prefix)
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "qkv",
                            env={"PKG_CONFIG_PATH": str(libraries / "pkgconfig"), "PATH": "/usr/bin:/bin"}))
    run("g++", "-std=c++20", CONSUMER / "main.cpp", *flags, "-o", tmp_path / "consumer")
    assert run(tmp_path / "consumer", cwd=tmp_path, env={"LD_LIBRARY_PATH": str(libraries)}) == PRINTED


def test_find_package_from_c(prefix, tmp_path):
    run("cmake", "-S", CONSUMER / "find_package_c", "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    assert run(tmp_path / "recall", cwd=tmp_path) == C_PRINTED


def test_pkg_config_from_c(prefix, tmp_path):
    libraries = library_folder(prefix)
    static = [] if any(libraries.glob("libqkv.so")) else ["--static"]
    flags = shlex.split(run("pkg-config", *static, "--cflags", "--libs", "qkv",
                            env={"PKG_CONFIG_PATH": str(libraries / "pkgconfig"), "PATH": "/usr/bin:/bin"}))
    run("cc", "-std=c11", C_PROGRAM, *flags, "-o", tmp_path / "recall")
    assert run(tmp_path / "recall", cwd=tmp_path, env={"LD_LIBRARY_PATH": str(libraries)}) == C_PRINTED


def test_add_subdirectory(beside, tmp_path):
    assert run(beside / "consumer", cwd=tmp_path) == PRINTED


@pytest.mark.parametrize("prefix", ["shared"], indirect=True)  # the headers are the same
def test_installed_headers_stand_alone(prefix, tmp_path):
    """Every public header compiles on its own, with nothing but the standard library beside it."""
    include = prefix / "include"
    for header in sorted(include.glob("qkv/**/*.hpp")):
        if header.name == "explain.hpp":
            continue
        source = tmp_path / "one.cpp"
        source.write_text(f'#include "{header.relative_to(include)}"\n', encoding="utf-8")
        run("g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", f"-I{include}", source)
    assert not (include / "qkv" / "explain.hpp").exists()  # it belongs to the program
