"""`qkv explain` on a terminal: colours, widths and Ctrl-C, through a pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unicodedata

import pytest
from explain_oracle import TIMEOUT, run

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PLAIN_ENVIRONMENT = {"PATH": os.environ["PATH"], "TERM": "xterm-256color"}


@pytest.fixture(scope="module")
def qkv(program_dir):
    return program_dir / "qkv"


def start(command, columns, environment):
    """The process with a terminal of its own, and the terminal's other end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=PLAIN_ENVIRONMENT | environment,
                               preexec_fn=take_terminal)
    os.close(slave)
    return process, master


def read_all(master):
    output, deadline = b"", time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            output += piece
    os.close(master)
    return output.decode("utf-8").replace("\r\n", "\n")


def on_terminal(qkv, *arguments, columns=80, **environment):
    process, master = start([qkv, "explain", *arguments], columns, environment)
    text = read_all(master)
    assert process.wait(TIMEOUT) == 0, text
    return text


def cells(line):
    """Columns of a line without colours, by Python's tables."""
    wide = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)
    return wide - sum(unicodedata.combining(character) != 0 for character in line)


def test_colours_follow_the_terminal(qkv):
    assert "\x1b[48;5;" in on_terminal(qkv)
    assert "\x1b[48;2;" not in on_terminal(qkv)
    for depth in ("truecolor", "24bit"):
        assert "\x1b[48;2;" in on_terminal(qkv, COLORTERM=depth)
    assert "\x1b" not in on_terminal(qkv, NO_COLOR="1")
    assert "\x1b" not in on_terminal(qkv, NO_COLOR="1", COLORTERM="truecolor")
    assert "\x1b[48;5;" in on_terminal(qkv, NO_COLOR="")  # https://no-color.org: when not empty
    assert "\x1b" not in on_terminal(qkv, TERM="dumb")
    assert "\x1b" not in on_terminal(qkv, "--color", "never", COLORTERM="truecolor")
    assert "\x1b[48;5;" in on_terminal(qkv, "--color", "always", TERM="dumb")
    assert "\x1b[48;5;" in on_terminal(qkv, "--color", "always", NO_COLOR="1")


def test_pipes_have_no_colours_unless_asked(qkv):
    environment = PLAIN_ENVIRONMENT | {"COLORTERM": "truecolor"}
    assert b"\x1b" not in run(qkv, "explain", env=environment).stdout
    assert b"\x1b" not in run(qkv, "explain", "--json", "--color", "always", env=environment).stdout
    assert b"\x1b[48;2;" in run(qkv, "explain", "--color", "always", env=environment).stdout
    assert b"\x1b[48;2;" in run(qkv, "explain", "--colour=always", env=environment).stdout


def test_colours_change_nothing_else(qkv):
    coloured = on_terminal(qkv, "--stage", "causal", COLORTERM="truecolor")
    assert COLOURS.sub("", coloured) == run(qkv, "explain", "--stage", "causal").stdout.decode()


@pytest.mark.parametrize("columns", [40, 51, 64, 79, 80, 100, 200])
def test_lines_fit_the_terminal(qkv, columns):
    for arguments in ([], ["--full"], ["--example", "notebook"], ["注意 力 übersetzen a\u0301 " * 9], ["--digits", "9"]):
        for line in COLOURS.sub("", on_terminal(qkv, *arguments, columns=columns)).splitlines():
            assert cells(line) <= columns, (columns, arguments, line)


def test_width_without_a_terminal(qkv):
    def longest(**environment):
        text = run(qkv, "explain", "--full", env=PLAIN_ENVIRONMENT | environment).stdout.decode()
        return max(cells(line) for line in text.splitlines())

    assert longest() <= 80
    assert longest(COLUMNS="50") <= 50
    for odd in ("0", "-5", "abc", "", "99999999999999999999"):
        assert longest(COLUMNS=odd) <= (80 if not odd.startswith("9") else 1000)
    unknown = COLOURS.sub("", on_terminal(qkv, columns=0))
    assert max(cells(line) for line in unknown.splitlines()) <= 80


def test_screens_are_short(qkv):
    for screen in run(qkv, "explain").stdout.decode().split("\n\n"):
        assert len(screen.splitlines()) <= 25


def test_interrupt_leaves_the_terminal_reset(qkv):
    command = [qkv, "explain", "--tokens", "300", "--dim", "8", "--stage", "causal", "--full"]
    process, master = start(command, 80, {"COLORTERM": "truecolor"})
    deadline = time.monotonic() + TIMEOUT
    while not select.select([master], [], [], 0.1)[0] and time.monotonic() < deadline:
        pass
    first = os.read(master, 100)  # it has begun, and now waits for someone to read
    assert first
    os.write(master, b"\x03")
    rest = read_all(master)
    assert process.wait(TIMEOUT) == -signal.SIGINT
    assert "\x1b[0m" in rest
    last = rest.rindex("\x1b[0m")
    assert "\x1b[4" not in rest[last:] and "\x1b[1" not in rest[last:]


def test_hostile_tokens_stay_in_their_place(qkv):
    text = on_terminal(qkv, "\x1b[2J\x1b]0;title\x07 \u202eevil a\rb", "--color", "never")
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "\r" not in text
    assert "\\u{1b}" in text
