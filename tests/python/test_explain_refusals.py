"""Bad input to `qkv explain`: one line on standard error that names the thing, nothing on standard output, 2 or 1."""

import json
import os
import random
import re
import signal
import struct
import subprocess

import numpy as np
import pytest
from explain_oracle import TIMEOUT, explain, run
from safetensors.numpy import save_file

USAGE, DATA = 2, 1


@pytest.fixture(scope="module")
def qkv(program_dir):
    return program_dir / "qkv"


def refused(program, arguments, status, *parts):
    """Asserts that qkv refuses the arguments as it should, and that its message holds every part."""
    done = run(program, *arguments)
    shown = [argument[:80] for argument in arguments]
    message = done.stderr.decode("utf-8")  # the message itself is always UTF-8
    assert done.returncode == status, (shown, done.returncode, message[:2000])
    assert done.stdout == b"", shown
    assert message.startswith("qkv: ") and message.endswith("\n") and message.count("\n") == 1, (shown, message)
    assert all(character.isprintable() for character in message[:-1]), (shown, message)
    assert len(message) < 1500, (shown, len(message))
    for part in parts:
        assert part in message, (shown, part, message)
    return message


WHOLE = ["", "0", "-1", "1.5", "abc", "1e3", " 3", "3 ", "0x10", "99999999999999999999", "nan", "inf", "٣", "3,", "+ 3",
         "1\n2", "\x1b[31m", "9223372036854775808", "-9223372036854775809", "100000000"]
NUMBERS = {name: WHOLE for name in ("--tokens", "--dim", "--d-out", "--heads", "--context-length", "--digits")}
NUMBERS["--seed"] = ["", "-1", "1.5", "abc", "18446744073709551616", "nan", "0x1", " 1", "1 "]
NUMBERS["--dropout"] = ["", "-0.1", "1.1", "nan", "-nan", "inf", "-inf", "abc", "0,5", "1e999", "-1e-9", "1.0000001", "0.5x"]


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers(qkv, option):
    for value in NUMBERS[option]:
        for spelling in ([option, value], [f"{option}={value}"]):
            if value == "" and len(spelling) == 1:
                continue
            refused(qkv, ["explain", *spelling], USAGE, option)
            refused(qkv, ["explain", "--json", *spelling], USAGE, option)


CHOICES = {"--stage": ["simple", "self", "causal", "wrapper", "multi-head", "cross", "all"],
           "--init": ["uniform", "linear"], "--normalise": ["sum", "naive", "softmax"],
           "--color": ["auto", "always", "never"], "--example": ["journey", "sun", "notebook", "translate"]}


def misspelled(word, rng):
    """`word` with one slip."""
    place = rng.randrange(len(word))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    return rng.choice([word[:place] + word[place + 1:], word[:place] + letter + word[place:],
                       word[:place] + letter + word[place + 1:]])


@pytest.mark.parametrize("option", CHOICES)
def test_choices(qkv, option):
    rng = random.Random(option)
    for word in CHOICES[option]:
        slips = {misspelled(word, rng) for _ in range(4)} - set(CHOICES[option])
        for slip in slips:
            message = refused(qkv, ["explain", option, slip], USAGE, slip, "expected", word)
            if len(word) > 4:
                assert "Did you mean" in message, message
    for value in ("", "zzzzzzzzzz", "\x1b[2J", "a\nb", "SELF" * 2000):
        refused(qkv, ["explain", option, value], USAGE, "expected")


def options_in_help(program):
    return sorted(set(re.findall(r"--[a-z][a-z-]+", run(program, "explain", "--help").stdout.decode())))


def test_unknown_options_and_commands(qkv):
    known = options_in_help(qkv)
    assert {"--stage", "--weights", "--normalize", "--source-embeddings"} <= set(known)
    rng = random.Random(3)
    for option in known:
        for slip in {"--" + misspelled(option[2:], rng) for _ in range(4)} - set(known):
            if slip.startswith("---"):
                continue  # the name of no option: it is TEXT
            message = refused(qkv, ["explain", slip], USAGE, "unknown option", slip)
            if len(option) > 7:
                assert "Did you mean --" in message, message
            refused(qkv, ["explain", f"{slip}=3"], USAGE, "unknown option", slip)
    refused(qkv, ["explian"], USAGE, "explian", "Did you mean explain?")
    for arguments in (["frobnicate"], ["--frob"], ["-x"], ["explain", "-x"], ["explain", "a", "b"], ["\n"], ["\xff\x1b"],
                      ["explain", "explain", "explain"], ["", "explain"]):
        refused(qkv, arguments, USAGE)


def test_missing_and_repeated_values(qkv):
    flags = {"--train", "--qkv-bias", "--full", "--json", "--help"}
    for option in set(options_in_help(qkv)) - flags:
        refused(qkv, ["explain", option], USAGE, option.replace("normalize", "normalise").replace("colour", "color"))
    for flag in flags - {"--help"}:
        for value in ("3", "false", "maybe", ""):
            if value:
                refused(qkv, ["explain", f"{flag}={value}"], USAGE, flag)
    refused(qkv, ["explain", "--seed", "1", "--seed", "2"], USAGE, "--seed")


BAD_REQUESTS = [
    (["--query", "jurney"], ["'jurney'", "Did you mean journey?"]),
    (["--query", "0"], ["query 0", "1 to 6"]),
    (["--query", "7"], ["query 7", "1 to 6"]),
    (["--query", "-1"], ["-1"]),
    (["--query", "a\nb\x1b[31m"], ["\\u{a}", "\\u{1b}"]),
    (["bad\x1b[31m\u202etext", "--query", "x"], ["\\u{1b}", "\\u{202e}"]),
    (["--query", "word " * 4000], ["expected"]),
    (["word" * 5000, "--query", "x"], ["expected"]),
    (["--stage", "multi-head", "--d-out", "8", "--heads", "3"], ["8 does not divide by 3", "try 2 or 4"]),
    (["--stage", "cross", "--d-out", "8", "--heads", "5"], ["8 does not divide by 5", "try 4 or 8"]),
    (["--stage", "multi-head", "--heads", "3"], ["2 does not divide by 3"]),
    (["--stage", "causal", "--context-length", "5"], ["6 tokens", "context_length of 5"]),
    (["--context-length", "5"], ["6 tokens", "context_length of 5"]),
    (["--stage", "wrapper", "--tokens", "9", "--context-length", "8"], ["9 tokens", "context_length of 8"]),
    ([""], ["TEXT has no tokens"]),
    ([" \t\n "], ["TEXT has no tokens"]),
    (["--source", ""], ["--source has no tokens"]),
    (["--source", "a " * 65000, "--stage", "cross"], ["65000 tokens", "2048"]),
    (["a " * 60000], ["60000 tokens", "2048"]),
    (["--tokens", "2049"], ["2049", "2048"]),
    (["--tokens", "3", "words"], ["--tokens", "TEXT"]),
    (["--example", "sun", "words"], ["--example", "TEXT"]),
    (["--example", "sun", "--tokens", "3"], ["--example", "--tokens"]),
    (["--stage", "simple", "--heads", "2"], ["--heads", "simple"]),
    (["--stage", "simple", "--qkv-bias"], ["--qkv-bias", "simple"]),
    (["--stage", "self", "--dropout", "0.5"], ["--dropout", "self"]),
    (["--stage", "self", "--init", "uniform", "--qkv-bias"], ["--qkv-bias", "--init linear"]),
    (["--stage", "causal", "--source", "x"], ["--source", "causal"]),
    (["--stage", "causal", "--normalise", "sum"], ["--normalise", "causal"]),
    (["--stage", "causal", "--dim", "4"], ["--dim"]),
    (["--weights", "w.safetensors"], ["--weights", "--stage"]),
]


@pytest.mark.parametrize("arguments, parts", BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_requests_that_make_no_sense(qkv, arguments, parts):
    refused(qkv, ["explain", *arguments], USAGE, *parts)
    refused(qkv, ["explain", "--json", *arguments], USAGE, *parts)


def test_text_of_bytes_that_are_no_utf8(qkv):
    for text in (b"\xff", b"ok \xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"a\xf4\x90\x80\x80", b"\x80word"):
        for arguments in ([text], [b"--source", text], [b"--query", text], [b"--stage", text], [b"--embeddings", text]):
            command = [os.fsencode(qkv), b"explain", *arguments]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)
            assert done.returncode in (USAGE, DATA) and done.stdout == b"", arguments
            message = done.stderr.decode("utf-8")
            assert message.startswith("qkv: ") and message.count("\n") == 1, arguments
            if arguments[0] in (text, b"--source"):
                assert "UTF-8" in message, message


def test_a_text_of_70000_tokens(qkv):
    text = "a " * 65000  # what fits one argument
    refused(qkv, ["explain", text], USAGE, "65000 tokens", "2048")


BAD_CSV = {
    "empty": b"", "blank": b"\n\n", "ragged": b"1,2\n3\n", "longer": b"1,2\n3,4,5\n", "word": b"1,2\n3,x\n",
    "nan": b"1,nan\n", "inf": b"inf,2\n", "minus": b"1,-inf\n", "overflow": b"1,1e39\n", "huge": b"1,1e999\n",
    "hole": b"1,,3\n", "trailing": b"1,2,\n", "labels only": b"a\nb\n", "header": b"name,x,y\na,1,2\n",
    "quote": b'"a,1,2\n', "nul": b"1,\x002\n", "utf-8": b"\xff\xfe,1\n", "spaces": b"1 2\n", "semicolons": b"1;2\n3;4\n",
    "binary": bytes(range(256)), "label twice": b"a,b,1\n", "hex": b"1,0x10\n", "comma": b",\n", "cr": b"1,2\r3\r",
    "escape": b"\x1b[31m,1,x\n", "utf-16": "1,2\n".encode("utf-16"),
}
BAD_JSON = {
    "empty": "", "object": "{}", "number": "3", "flat": "[1,2]", "ragged": "[[1,2],[3]]", "nan": "[[NaN]]", "inf": "[[1e999]]",
    "word": '[["a"]]', "null": "[[null]]", "nothing": "[]", "rows of nothing": "[[],[]]", "open": "[[1,2]", "more": "[[1]] x",
    "tokens": '{"tokens":["a"],"embeddings":[[1],[2]]}', "twice": '{"embeddings":[[1]],"embeddings":[[2]]}',
    "deep": "[" * 100000, "label": '{"tokens":[3],"embeddings":[[1]]}', "float": "[[1e39]]", "comma": "[[1,]]", "bool": "[[true]]",
}


def test_embedding_files_of_text(qkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, files in (("csv", BAD_CSV), ("json", BAD_JSON)):
        for name, content in files.items():
            path = tmp_path / f"{name}.{kind}"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            refused(qkv, ["explain", "--embeddings", path.name], DATA, path.name)
            refused(qkv, ["explain", "--stage", "cross", "--json", "--source-embeddings", path.name], DATA, path.name)


def test_embedding_files_of_bytes(qkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"x": np.ones((2, 2), np.float32)}
    np.save(tmp_path / "good.npy", good["x"])
    save_file(good, tmp_path / "good.safetensors")
    bad_arrays = [np.full((2, 2), np.nan, np.float32), np.full((2, 2), np.inf), np.ones(3), np.ones((1, 2, 3)),
                  np.ones((0, 2)), np.ones((2, 0)), np.array([["a"]]), np.ones((2, 2), complex), np.full((1, 1), 1e300)]
    for index, array in enumerate(bad_arrays):
        np.save(tmp_path / f"bad{index}.npy", array)
        refused(qkv, ["explain", "--embeddings", str(tmp_path / f"bad{index}.npy")], DATA, f"bad{index}.npy")
    for kind in ("npy", "safetensors"):
        whole = (tmp_path / f"good.{kind}").read_bytes()
        for cut in range(0, len(whole), 7):
            path = tmp_path / f"cut{cut}.{kind}"
            path.write_bytes(whole[:cut])
            refused(qkv, ["explain", "--embeddings", path.name], DATA, path.name)
    for name in ("x.txt", "x", "x.csv.gz", ".csv"):
        (tmp_path / name).write_text("1,2\n")
        refused(qkv, ["explain", "--embeddings", str(tmp_path / name)], DATA, "expected .csv, .json, .npy or .safetensors")
    refused(qkv, ["explain", "one two three", "--embeddings", str(tmp_path / "good.npy")], DATA, "2 rows", "3 tokens")


def test_paths_that_cannot_be_read(qkv, tmp_path):
    (tmp_path / "directory.csv").mkdir()
    (tmp_path / "directory.safetensors").mkdir()
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    for path in ("directory.csv", "missing.csv", "loop.csv", "pipe.csv", "missing/there.npy", "a\nb.csv", "x" * 5000 + ".csv"):
        refused(qkv, ["explain", "--embeddings", str(tmp_path / path)], DATA)
    for path in ("directory.safetensors", "missing.safetensors", "", "pipe.csv"):
        refused(qkv, ["explain", "--stage", "causal", "--weights", str(tmp_path / path)], DATA)
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "closed.csv").write_text("1,2\n")
        (tmp_path / "closed.csv").chmod(0)
        refused(qkv, ["explain", "--embeddings", str(tmp_path / "closed.csv")], DATA, "closed.csv")


def frame(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def hostile_files():
    good = {"W_query": entry([3, 2], 0, 24), "W_key": entry([3, 2], 24, 48), "W_value": entry([3, 2], 48, 72)}
    data = bytes(72)
    yield "empty", b""
    yield "seven bytes", b"\0" * 7
    yield "header past the file", struct.pack("<Q", 1 << 20) + b"{}"
    yield "header of 100 MB and one", struct.pack("<Q", 100_000_001) + b"{}"
    yield "header of all ones", b"\xff" * 8 + b"{}"
    yield "no JSON", frame(b"{]", data)
    yield "not an object", frame(b"[]", data)
    yield "overlap", frame(good | {"W_key": entry([3, 2], 20, 44)}, data)
    yield "hole", frame(good | {"W_value": entry([3, 2], 52, 76)}, data + bytes(4))
    yield "duplicate", frame(b'{"W_query":%s,"W_query":%s}' % ((json.dumps(good["W_query"]).encode(),) * 2), data[:24])
    yield "data left over", frame(good, data + b"x")
    yield "data missing", frame(good, data[:-1])
    yield "end before begin", frame({"W_query": entry([3, 2], 24, 0)}, data)
    yield "size mismatch", frame({"W_query": entry([3, 3], 0, 24)}, data[:24])
    yield "negative", frame({"W_query": entry([-3, -2], 0, 24)}, data[:24])
    yield "overflow", frame({"W_query": entry([2**62, 8], 0, 0)})
    yield "fraction", frame({"W_query": entry([3.0, 2], 0, 24)}, data[:24])
    yield "dtype", frame({"W_query": entry([3, 2], 0, 24, "F33")}, data[:24])
    yield "deep", frame(b'{"a":' + b"[" * 200000, b"")
    yield "utf-8", frame(b'{"\xff":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', bytes(4))
    yield "escape in a name", frame({"\x1b[31mW\n": entry([3], 0, 12)}, data[:12])


def test_hostile_weight_files(qkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in hostile_files():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        refused(qkv, ["explain", "--stage", "self", "--weights", path.name], DATA, name)
        refused(qkv, ["explain", "--json", "--embeddings", path.name], DATA, name)


def test_truncated_and_mutated_weight_files(qkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(11)
    tensors = {f"W_{name}": np.arange(6, dtype=np.float32).reshape(3, 2) for name in ("query", "key", "value")}
    save_file(tensors, tmp_path / "good.safetensors")
    explain(qkv, "--stage", "self", "--weights", str(tmp_path / "good.safetensors"))
    whole = (tmp_path / "good.safetensors").read_bytes()
    for cut in range(0, len(whole), 5):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[:cut])
        refused(qkv, ["explain", "--stage", "self", "--weights", path.name], DATA, "cut.safetensors")
    for _ in range(150):
        mutated = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(len(whole) - 72)] = rng.randrange(256)
        (tmp_path / "mutated.safetensors").write_bytes(mutated)
        done = run(qkv, "explain", "--stage", "self", "--weights", str(tmp_path / "mutated.safetensors"))
        assert done.returncode in (0, DATA), (bytes(mutated), done.stderr)
        assert done.returncode == 0 or (done.stdout == b"" and done.stderr.count(b"\n") == 1), done.stderr


def linear_state(d_out=2, d_in=3, out_proj=True):
    state = {f"W_{name}.weight": np.ones((d_out, d_in), np.float32) for name in ("query", "key", "value")}
    if out_proj:
        state |= {"out_proj.weight": np.ones((d_out, d_out), np.float32), "out_proj.bias": np.ones(d_out, np.float32)}
    return state


def test_weight_files_that_do_not_fit(qkv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def of(state, *parts, stage="multi-head", more=(), status=DATA):
        save_file(state, tmp_path / "w.safetensors")
        arguments = ["explain", "--stage", stage, "--weights", "w.safetensors", *more]
        refused(qkv, arguments, status, *parts)
        refused(qkv, [*arguments, "--json"], status, *parts)

    good = linear_state()
    of(good | {"W_key.weight": np.ones((2, 4), np.float32)}, "W_key.weight", "[2, 4]", "[2, 3]", "w.safetensors")
    of(good | {"out_proj.bias": np.ones(3, np.float32)}, "out_proj.bias", "[3]", "[2]")
    of(linear_state(d_in=4), "W_query.weight", "[2, 4]", "[2, 3]")
    of(good, "W_query.weight", "[2, 3]", "[4, 3]", more=["--d-out", "4"])
    of({name: tensor for name, tensor in good.items() if name != "W_value.weight"}, "W_value.weight", "missing")
    of(good | {"extra": np.ones(3, np.float32)}, "extra", "[3]")
    of(good | {"mask": np.ones((9, 9), np.float32)}, "mask")
    of(good | {"mask": np.triu(np.ones((5, 5), np.float32), 1)}, "6 tokens", "5", status=USAGE)
    of(good | {"mask": np.triu(np.ones((9, 8), np.float32), 1)}, "mask", "[9, 8]")
    of({"other": np.ones(3, np.float32)}, "no query projection")
    of({"W_query.weight": np.ones(3, np.float32)}, "[3]", "rank 2")
    of({"W_query.weight": np.ones((0, 3), np.float32)}, "[0, 3]")
    of({"W_query.weight": np.array(3.0, np.float32)}, "[]", "rank 2")
    of(linear_state(out_proj=False), "out_proj")
    of(good, "out_proj", stage="causal")
    of(good, "heads.0", stage="wrapper")
    of({"in_proj_weight": np.ones((8, 3), np.float32)}, "in_proj_weight", "[8, 3]")
    of({"in_proj_weight": np.ones((6, 3), np.float32), "in_proj_bias": np.ones(7, np.float32)}, "in_proj_bias", "[7]")
    of({"in_proj_weight": np.ones((6, 3), np.float32), "in_proj_bias": np.array(1, np.float32)}, "in_proj_bias")
    of({"q_proj_weight": np.ones((2, 3), np.float32)}, "W_key.weight", stage="cross", more=["--example", "journey"])
    of(linear_state(d_out=4), "4 does not divide by 3", more=["--heads", "3"], status=USAGE)


def test_no_file_is_left_behind(qkv, tmp_path):
    before = sorted(os.listdir(tmp_path))
    run(qkv, "explain", "--embeddings", "missing.csv", cwd=tmp_path)
    run(qkv, "explain", "--stage", "nothing", cwd=tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("arguments", [["explain"], ["explain", "--json"], ["--help"], ["explain", "--help"], ["--version"], []])
def test_a_full_disk_behind_standard_output(qkv, arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([qkv, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT)
    assert done.returncode == DATA
    assert done.stderr == b"qkv: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--json"], ["--full"]])
def test_a_closed_pipe(qkv, arguments):
    command = [qkv, "explain", "--tokens", "400", "--dim", "16", "--stage", "causal", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(TIMEOUT) == -signal.SIGPIPE
    assert errors == b""
    # Where the parent ignores the signal, it is an error like any other.
    ignoring = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=False,
                                preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN))
    ignoring.stdout.read(10)
    ignoring.stdout.close()
    assert ignoring.stderr.read() == b"qkv: cannot write to standard output: Broken pipe\n"
    ignoring.stderr.close()
    assert ignoring.wait(TIMEOUT) == DATA


def test_standard_output_that_is_closed(qkv):
    done = subprocess.run([qkv, "explain"], stderr=subprocess.PIPE, timeout=TIMEOUT, preexec_fn=lambda: os.close(1))
    assert done.returncode == DATA and b"cannot write to standard output" in done.stderr
