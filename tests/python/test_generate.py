"""`qkv generate`, and `qkv explain --model`: against the model computed again by numpy from its file."""

import json
import math
import os
import select
import subprocess
import time

import numpy as np
import pytest
from explain_oracle import explain
from safetensors.numpy import load_file, save_file
from train_support import TIMEOUT, TINY, refused, run, train, write_text

USAGE, DATA = 2, 1


@pytest.fixture(scope="module")
def qkv(program_dir):
    return program_dir / "qkv"


@pytest.fixture(scope="module")
def model(qkv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text = write_text(folder / "words.txt")
    train(qkv, text, *TINY, "--steps", "60", "--lr", "0.02", "--out", folder / "m.safetensors")
    return folder / "m.safetensors"


CHARACTERS = "".join(sorted(set("the quick brown fox jumps over lazy dog")))


def layer_norm(x, scale, shift):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift


def forward(path, text):
    """Logits [tokens, vocabulary] and weights [layers, heads, tokens, tokens], in float64."""
    p = {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    tokens, width, heads = len(text), p["pos_emb.weight"].shape[1], 2
    x = p["tok_emb.weight"][[CHARACTERS.index(c) for c in text]] + p["pos_emb.weight"][:tokens]
    hidden = np.triu(np.ones((tokens, tokens), bool), 1)
    all_weights = []
    for n in range(2):
        b = {name.removeprefix(f"trf_blocks.{n}."): tensor for name, tensor in p.items() if name.startswith(f"trf_blocks.{n}.")}
        h = layer_norm(x, b["norm1.scale"], b["norm1.shift"])
        q, k, v = ((h @ b[f"att.W_{part}.weight"].T).reshape(tokens, heads, width // heads).transpose(1, 0, 2)
                   for part in ("query", "key", "value"))
        scores = np.where(hidden, -np.inf, q @ k.transpose(0, 2, 1) / math.sqrt(width // heads))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        all_weights.append(weights)
        context = (weights @ v).transpose(1, 0, 2).reshape(tokens, width)
        x = x + context @ b["att.out_proj.weight"].T + b["att.out_proj.bias"]
        h = layer_norm(x, b["norm2.scale"], b["norm2.shift"])
        h = h @ b["ff.layers.0.weight"].T + b["ff.layers.0.bias"]
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ b["ff.layers.2.weight"].T + b["ff.layers.2.bias"]
    return layer_norm(x, p["final_norm.scale"], p["final_norm.shift"]) @ p["out_head.weight"].T, np.array(all_weights)


def generated(qkv, model, *arguments, **options):
    done = run(qkv, "generate", model, *arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode()


def test_greedy_is_the_most_likely_continuation(qkv, model):
    text = "the "
    for _ in range(4):  # up to the context of 8
        text += CHARACTERS[forward(model, text)[0][-1].argmax()]
    assert generated(qkv, model, "the ", "--greedy", "--tokens", "4") == text + "\n"
    assert generated(qkv, model, "the ", "--temperature", "0", "--tokens", "4") == text + "\n"


def test_draws_follow_the_seed_and_nothing_else(qkv, model):
    first = generated(qkv, model, "the ", "--tokens", "60", "--seed", "5")
    assert len(first) == 65 and set(first) <= set(CHARACTERS + "\n")
    assert first == generated(qkv, model, "the ", "--tokens", "60", "--seed", "5", "--threads", "2")
    assert first != generated(qkv, model, "the ", "--tokens", "60", "--seed", "6")
    assert first != generated(qkv, model, "the ", "--tokens", "60", "--seed", "5", "--temperature", "3")
    greedy = generated(qkv, model, "the ", "--tokens", "60", "--greedy")
    assert greedy == generated(qkv, model, "the ", "--tokens", "60", "--top-k", "1")
    assert greedy == generated(qkv, model, "the ", "--tokens", "60", "--top-p", "1e-9")
    assert len(generated(qkv, model, "--tokens", "7")) == 8  # from nothing


def test_tokens_arrive_one_by_one(qkv, model):
    process = subprocess.Popen([qkv, "generate", model, "the ", "--tokens", "1000000000"], stdout=subprocess.PIPE)
    received, deadline = b"", time.monotonic() + TIMEOUT
    while len(received) < 200 and time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1)[0]:
            received += os.read(process.stdout.fileno(), 50)
    process.stdout.close()  # nobody reads on: the program ends by itself
    assert process.wait(TIMEOUT) != 0
    assert len(received) >= 200


def test_characters_are_whole_with_a_tokenizer_of_bytes(qkv, tmp_path):
    (tmp_path / "t").write_text("日本語のテキスト、übel 😀 " * 40, encoding="utf-8")
    train(qkv, tmp_path / "t", *TINY, "--steps", "30", "--tokenizer", "bpe", "--vocab", "262", "--out", tmp_path / "m")
    for seed in range(5):
        text = generated(qkv, tmp_path / "m", "日本", "--tokens", "50", "--seed", str(seed), "--temperature", "1.5")
        assert text.startswith("日本")  # and decode() above was strict
    assert generated(qkv, tmp_path / "m", "any prompt at all: \x07€", "--tokens", "1").startswith("any prompt at all")


def test_bad_input(qkv, model, tmp_path):
    refused(qkv, ["generate", model, "the €"], USAGE, "'€' (U+20AC) is not among the")
    refused(qkv, ["generate", model, b"the \xff"], USAGE, "not UTF-8")
    for option in ("--tokens", "--temperature", "--top-k", "--top-p", "--seed", "--threads"):
        for value in ("-1", "x", ""):
            refused(qkv, ["generate", model, f"{option}={value}"] if value else ["generate", model, option, value], USAGE)
    refused(qkv, ["generate", model, "--top-p", "0"], USAGE, "top_p is 0")
    refused(qkv, ["generate", model, "--greedy", "--top-k", "3"], USAGE, "--greedy")
    refused(qkv, ["generate"], USAGE, "model")
    refused(qkv, ["generate", tmp_path / "absent"], DATA, "No such file")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other")
    refused(qkv, ["generate", tmp_path / "other"], DATA, "is no model of qkv train")
    content = model.read_bytes()
    for cut in (0, 7, 100, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:cut])
        refused(qkv, ["generate", tmp_path / "cut"], DATA, "cut")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([qkv, "generate", model], stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT, check=False)
    assert done.returncode == DATA and b"cannot write to standard output" in done.stderr


def test_explain_shows_the_heads_of_the_model(qkv, model):
    text = "fox jump"
    document = explain(qkv, "--model", str(model), text)
    assert [stage["layer"] for stage in document["stages"]] == [1, 2]
    assert document["tokens"] == list("fox") + ["␣"] + list("jump")
    _, weights = forward(model, text)
    for layer, stage in enumerate(document["stages"]):
        assert stage["stage"] == "multi-head" and stage["heads"] == 2 and stage["head"] == 0
        assert stage["query"] == {"index": 7, "token": "p"}
        assert np.abs(stage["tensors"]["weights"] - weights[layer]).max() < 1e-5
        for name, shape in (("inputs", (8, 8)), ("queries", (2, 8, 4)), ("masked", (2, 8, 8)), ("context", (8, 8)),
                            ("output", (8, 8)), ("W_query", (8, 8)), ("out_proj.bias", (8,))):
            assert stage["tensors"][name].shape == shape, name


def test_explain_follows_the_chosen_head(qkv, model):
    _, weights = forward(model, "fox jump")
    done = run(qkv, "explain", "--model", model, "fox jump", "--layer", "2", "--head", "2", "--query", "j", "--digits", "3")
    assert done.returncode == 0, done.stderr.decode()
    screen = done.stdout.decode()
    assert "1/1 LAYER 2   of a trained model" in screen and "weights of head 2 of 2" in screen
    assert "j, step by step in head 2" in screen and "head 1" in screen
    row = next(line for line in screen.splitlines() if line.startswith(" ▸ j "))
    shown = [float(cell) for cell in row.split()[2:7]]
    assert np.abs(np.array(shown) - weights[1, 1, 4, :5]).max() < 6e-4
    expected = forward(model, "fox j")[0][-1]
    share = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    best = CHARACTERS[share.argmax()].replace(" ", "␣")
    assert f"After j the model expects {best} {100 * share.max():.0f} %" in " ".join(screen.split())


def test_explain_makes_a_page_of_the_model(qkv, model, tmp_path):
    done = run(qkv, "explain", "--model", model, "fox jump", "--head", "2", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr.decode()
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = page.split('type="application/json"')[1].split(">", 1)[1].split("</script>")[0]
    assert [(stage["layer"], stage["head"]) for stage in json.loads(data)["stages"]] == [(1, 1), (2, 1)]


def test_explain_refuses_what_a_model_brings(qkv, model):
    model = str(model)
    refused(qkv, ["explain", "--model", model], USAGE, "--model needs a text")
    refused(qkv, ["explain", "--model", model, "fox jumps"], USAGE, "TEXT has 9 tokens", "1 to 8")
    refused(qkv, ["explain", "--model", model, ""], USAGE, "TEXT has 0 tokens")
    refused(qkv, ["explain", "--model", model, "fix€"], USAGE, "U+20AC")
    refused(qkv, ["explain", "--model", model, "fox", "--layer", "3"], USAGE, "--layer is 3", "2 layers")
    refused(qkv, ["explain", "--model", model, "fox", "--head", "3"], USAGE, "--head is 3", "2 heads")
    for option in (["--stage", "self"], ["--heads", "2"], ["--train"], ["--seed", "1"], ["--dim", "4"], ["--tokens", "3"]):
        refused(qkv, ["explain", "--model", model, "fox", *option], USAGE, option[0])
    refused(qkv, ["explain", "fox", "--layer", "1"], USAGE, "--layer")
    refused(qkv, ["explain", "fox", "--head", "1"], USAGE, "--head")
