"""`qkv train`: what it writes, how it is stopped, killed, resumed, refused."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import time
import xml.etree.ElementTree

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_explain_terminal import read_all, start
from train_support import TIMEOUT, TINY, refused, run, train, write_text

USAGE, DATA, STOPPED = 2, 1, 130


@pytest.fixture(scope="module")
def qkv(program_dir):
    return program_dir / "qkv"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def trained(qkv, text, tmp_path_factory):
    """A finished training with everything that it can write, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    said = train(qkv, text, *TINY, "--steps", "60", "--dropout", "0.1", "--accumulate", "2", "--out", folder / "m.safetensors",
                 "--log", folder / "loss.jsonl", "--plot", folder / "loss.svg")
    return folder, said


def test_it_says_what_it_does_and_what_to_do_next(trained, qkv):
    folder, said = trained
    lines = said.splitlines()
    assert re.match(r"2 layers × 2 heads, width 8, context 8, 27 tokens in the vocabulary: \d+ parameters; text of ", lines[0])
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 6 and "\x1b" not in said and "\r" not in said
    assert re.fullmatch(r"step 60/60  loss \d\.\d{4}  validation \d\.\d{4} \(\d+\.\d % right\)  \d+ tokens/s  0:00 left", steps[-1])
    assert lines[-2] == f"Wrote {folder}/m.safetensors, {folder}/loss.svg, {folder}/loss.jsonl"
    command = shlex.split(lines[-1].removeprefix("Try: "))
    assert command[:2] == ["qkv", "generate"]
    assert run(qkv, *command[1:]).returncode == 0
    assert len(command[-1]) == 8  # of the text itself: "The " has a letter that it lacks


def test_the_file_is_the_models_state_dict_and_the_trainers(trained):
    folder, _ = trained
    tensors = load_file(folder / "m.safetensors")
    model = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("training.")}
    block = {"att.W_query.weight": (8, 8), "att.W_key.weight": (8, 8), "att.W_value.weight": (8, 8),
             "att.out_proj.weight": (8, 8), "att.out_proj.bias": (8,), "att.mask": (8, 8),
             "ff.layers.0.weight": (32, 8), "ff.layers.0.bias": (32,), "ff.layers.2.weight": (8, 32), "ff.layers.2.bias": (8,),
             "norm1.scale": (8,), "norm1.shift": (8,), "norm2.scale": (8,), "norm2.shift": (8,)}
    expected = {"tok_emb.weight": (27, 8), "pos_emb.weight": (8, 8), "final_norm.scale": (8,), "final_norm.shift": (8,),
                "out_head.weight": (27, 8)}
    expected |= {f"trf_blocks.{n}.{name}": shape for n in range(2) for name, shape in block.items()}
    assert model == expected
    parameters = [name for name in model if not name.endswith(".mask")]
    for name in parameters:
        assert tensors[f"training.adamw.{name}.exp_avg"].shape == model[name]
        assert tensors[f"training.adamw.{name}.exp_avg_sq"].shape == model[name]
        assert tensors[f"training.adamw.{name}.step"] == 60
    assert len(tensors) == len(model) + 3 * len(parameters) + 3
    with safe_open(folder / "m.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "qkv gpt 1" and metadata["num_heads"] == "2" and metadata["tokenizer"] == "char"
    assert metadata["tokenizer_data"] == "".join(sorted(set("the quick brown fox jumps over lazy dog")))
    assert metadata["training.steps"] == "60" and metadata["training.lr"] == "0.005"


def test_log_and_plot_show_the_same_history(trained):
    folder, said = trained
    rows = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "validation_loss" in row] == [10, 20, 30, 40, 50, 60]
    tensors = load_file(folder / "m.safetensors")
    assert np.array_equal(tensors["training.losses"], np.float32([row["loss"] for row in rows]))
    assert f"validation {rows[-1]['validation_loss']:.4f}" in said
    assert rows[-1]["loss"] < rows[0]["loss"]
    svg = xml.etree.ElementTree.parse(folder / "loss.svg").getroot()
    names = [element.tag.rpartition("}")[2] for element in svg.iter()]
    assert names.count("circle") == 6 and names.count("polyline") == 2
    assert f"validation {rows[-1]['validation_loss']:.3f}" in (folder / "loss.svg").read_text()


STEPS = 2000  # more than a second: who is stopped after a few must still be under way when the signal comes


def full_run(qkv, text, folder):
    arguments = [text, *TINY, "--steps", str(STEPS), "--dropout", "0.1", "--save-every", "7"]
    train(qkv, *arguments, "--quiet", "--out", folder / "whole", "--log", folder / "whole.jsonl")
    return arguments


def wait_for_steps(log, steps, process):
    """Until the log holds so many lines: it is written out at each checkpoint."""
    deadline = time.monotonic() + TIMEOUT
    while not log.exists() or log.read_bytes().count(b"\n") < steps:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_and_resumed_it_has_the_same_bits(qkv, text, tmp_path):
    arguments = full_run(qkv, text, tmp_path)
    out, log = tmp_path / "part", tmp_path / "part.jsonl"
    for number, steps in enumerate((20, 150, 151, 300)):
        go_on = [text, "--resume", out] if number else [*arguments, "--out", out]
        process = subprocess.Popen([qkv, "train", *go_on, "--quiet", "--log", log])
        wait_for_steps(log, steps, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(TIMEOUT) == -signal.SIGKILL
        assert 0 < len(load_file(out)["training.losses"]) < STEPS
    train(qkv, text, "--resume", out, "--log", log, "--threads", "2")
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert log.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_saves_and_says_how_to_go_on(how, qkv, text, tmp_path):
    arguments = full_run(qkv, text, tmp_path)
    spaced = tmp_path / "a text's words.txt"
    spaced.write_bytes(text.read_bytes())
    log = tmp_path / "part.jsonl"
    # Whoever runs the tests in the background has them inherit an ignored SIGINT.
    process = subprocess.Popen([qkv, "train", spaced, *arguments[1:], "--out", tmp_path / "part", "--log", log],
                               stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for_steps(log, 30, process)
    process.send_signal(how)
    said = process.communicate(timeout=TIMEOUT)[1].decode().splitlines()[-1]
    assert process.returncode == STOPPED
    steps = int(re.match(rf"qkv: stopped after step (\d+) of {STEPS}; to go on: ", said)[1])
    assert len(load_file(tmp_path / "part")["training.losses"]) == steps
    command = said.split("to go on: ")[1]
    environment = os.environ | {"PATH": f"{qkv.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=TIMEOUT, env=environment)
    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_full_disk_loses_nothing(qkv, text, tmp_path):
    out = tmp_path / "m.safetensors"

    def small_files():  # the model alone fits; with the optimizer's moments it does not
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    message = refused(qkv, ["train", text, *TINY, "--steps", "20", "--save-every", "1", "--out", out], DATA, "cannot write", out,
                      "File too large", preexec_fn=small_files)
    assert message.count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    train(qkv, text, "--resume", out)
    assert len(load_file(out)["training.losses"]) == 20


def test_outputs_that_cannot_be_written(qkv, text, tmp_path):
    common = ["train", text, *TINY, "--steps", "20"]
    refused(qkv, [*common, "--out", tmp_path / "no" / "m"], DATA, "cannot write", "No such file")
    refused(qkv, [*common, "--out", tmp_path], DATA, "cannot write", "a directory")
    refused(qkv, [*common, "--out", "/dev/full"], DATA, "cannot write", "/dev/full", "a device")
    refused(qkv, [*common, "--out", tmp_path / "m", "--log", "/dev/full"], DATA, "cannot write", "/dev/full", "No space left")
    for option, path in (("--plot", tmp_path / "no" / "p.svg"), ("--log", tmp_path / "no" / "l")):
        refused(qkv, [*common, "--out", tmp_path / "n", option, path], DATA, "cannot write", path.name)
        assert not (tmp_path / "n").exists()  # so that the command without the slip is not refused
    refused(qkv, [*common, "--out", tmp_path / "o", "--plot", "p.png"], USAGE, "--plot is 'p.png'", ".svg")


def test_a_model_is_not_overwritten_unasked(qkv, text, tmp_path):
    out = tmp_path / "m"
    out.write_bytes(b"precious")
    refused(qkv, ["train", text, *TINY, "--out", out], USAGE, "is there already", "--overwrite")
    assert out.read_bytes() == b"precious"
    train(qkv, text, *TINY, "--steps", "5", "--out", out, "--overwrite")
    assert len(load_file(out)["training.losses"]) == 5
    new = ["train", text, *TINY, "--steps", "5", "--out", tmp_path / "n"]
    for name, options in (("n.best", ["--early-stop", "1"]), ("l", ["--log", tmp_path / "l"]),
                          ("p.svg", ["--plot", tmp_path / "p.svg"])):
        (tmp_path / name).write_bytes(b"precious")
        refused(qkv, [*new, *options], USAGE, tmp_path / name, "is there already", "--overwrite")
        assert (tmp_path / name).read_bytes() == b"precious" and not (tmp_path / "n").exists()


def test_no_file_is_written_over_another(qkv, trained, text, tmp_path):
    novel, out = tmp_path / "novel.svg", tmp_path / "m"
    novel.write_bytes(text.read_bytes())
    (tmp_path / "link.svg").symlink_to(novel)
    own = tmp_path / "." / "m"
    for options, role, other in ((["--log", novel], "--log", "a text"), (["--plot", novel], "--plot", "a text"),
                                 (["--plot", tmp_path / "link.svg"], "--plot", "a text"),
                                 (["--out", novel, "--overwrite"], "--out", "a text"), (["--log", own], "--log", "--out"),
                                 (["--log", tmp_path / "m.best", "--early-stop", "2"], "--log", "the best model"),
                                 (["--log", tmp_path / "p.svg", "--plot", tmp_path / "p.svg"], "--log", "--plot"),
                                 (["--resume", trained[0] / "m.safetensors", "--log", trained[0] / "m.safetensors"], "--log",
                                  "--resume")):
        before = (trained[0] / "m.safetensors").read_bytes()
        options = options if "--out" in options else ["--out", out, *options]
        refused(qkv, ["train", novel, *TINY, *options], USAGE, f"{role} is", f"which is {other}")
        assert novel.read_bytes() == text.read_bytes() and not out.exists()
        assert (trained[0] / "m.safetensors").read_bytes() == before
    train(qkv, novel, *TINY, "--steps", "1", "--out", out, "--log", "/dev/null")


def test_a_model_that_the_machine_cannot_hold(qkv, text, tmp_path):
    refused(qkv, ["train", text, "--dim", "4096", "--heads", "4", "--layers", "256", "--context", "1024", "--out", tmp_path / "m"],
            DATA, "256 layers of width 4096", "GiB of memory to train; this machine has")


def test_texts_that_are_none(qkv, text, tmp_path):
    def refuses(content, *parts):
        path = tmp_path / "text"
        path.write_bytes(content)
        refused(qkv, ["train", text, path, *TINY, "--out", tmp_path / "m"], DATA, path, *parts)
        assert not (tmp_path / "m").exists()

    refuses(b"", "is empty")
    refuses(b"\x7fELF\x02\x01\x01\x00", "byte 7 is NUL")
    refuses("naïve".encode("latin-1"), "byte 2 is not UTF-8")
    refused(qkv, ["train", tmp_path / "absent", *TINY], DATA, "absent", "No such file")
    refused(qkv, ["train", tmp_path, *TINY], DATA, "a directory")
    (tmp_path / "text").write_text("too short")
    refused(qkv, ["train", tmp_path / "text", *TINY], USAGE, "the text has 9 tokens", "expected 18")


def test_options_out_of_range(qkv, text, tmp_path):
    for option in ("--context", "--layers", "--heads", "--dim", "--steps", "--batch", "--accumulate", "--eval-every",
                   "--save-every", "--early-stop"):
        for value in ("0", "-1", "x", "1.5", "99999999999"):
            refused(qkv, ["train", text, option, value, "--out", tmp_path / "m"], USAGE, option)
    for option in ("--lr", "--min-lr", "--weight-decay", "--clip", "--dropout"):
        for value in ("-1", "nan", "inf", "x"):
            refused(qkv, ["train", text, option, value, "--out", tmp_path / "m"], USAGE, option)
    refused(qkv, ["train", text, "--dropout", "1.5"], USAGE, "--dropout is 1.5")
    refused(qkv, ["train", text, "--dim", "10", "--heads", "4"], USAGE, "--dim 10 cannot be split into --heads 4")
    refused(qkv, ["train", text, "--tokenizer", "word"], USAGE, "--tokenizer is 'word'", "char, bpe")
    refused(qkv, ["train", text, "--vocab", "300"], USAGE, "--vocab is for --tokenizer bpe")
    refused(qkv, ["train", text, "--tokenizer", "bpe", "--vocab", "255"], USAGE, "--vocab")
    refused(qkv, ["train", "--task", "revers"], USAGE, "--task is 'revers'", "Did you mean reverse?")
    refused(qkv, ["train", text, "--task", "reverse"], USAGE, "--task makes its own sequences")
    refused(qkv, ["train", "--task", "reverse", "--context", "13"], USAGE, "context is 13")
    refused(qkv, ["train", "--stepz", "3"], USAGE, "--stepz", "Did you mean --steps?")
    assert list(tmp_path.iterdir()) == []


def test_resume_refuses_what_is_not_the_same(qkv, trained, text, tmp_path):
    out = trained[0] / "m.safetensors"
    before = out.read_bytes()
    other = write_text(tmp_path / "other.txt", seed=2)
    message = refused(qkv, ["train", other, "--resume", out], DATA, out, "was trained on a text of", "these data are a text of")
    assert len(set(re.findall(r"fnv1a (\w+)", message))) == 2
    for option, value, has in (("--dim", "16", "8"), ("--layers", "3", "2"), ("--heads", "4", "2"), ("--context", "16", "8"),
                               ("--tokenizer", "bpe", "char"), ("--dropout", "0.2", "0.1"), ("--task", "copy", "a text")):
        refused(qkv, ["train", text, "--resume", out, option, value], DATA, f"{option} is '{value}'", f"was trained with {has}")
    refused(qkv, ["train", "--resume", out], DATA, out, "was trained on another text than", "GPL-3, the default: the character")
    refused(qkv, ["train", text, "--resume", out, "--seed", "1"], USAGE, "--seed")
    refused(qkv, ["train", text, "--resume", out, "--dropout", "0.10"], USAGE, "has done 60 of 60 steps", "--steps")
    refused(qkv, ["train", text, "--resume", text, "--out", tmp_path / "m"], DATA, text)
    refused(qkv, ["train", text, "--resume", tmp_path / "absent"], DATA, "absent", "No such file")
    truncated = tmp_path / "truncated"
    truncated.write_bytes(before[:-100])
    refused(qkv, ["train", text, "--resume", truncated], DATA, truncated)
    assert out.read_bytes() == before


def test_more_steps_go_on_from_a_finished_training(qkv, trained, text, tmp_path):
    copy = tmp_path / "m"
    copy.write_bytes((trained[0] / "m.safetensors").read_bytes())
    assert "Going on after step 60" in train(qkv, text, "--resume", copy, "--steps", "65", "--lr", "0.001", "--dim", "8")
    assert len(load_file(copy)["training.losses"]) == 65


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_model(qkv, text, tmp_path):
    out = tmp_path / "m"
    refused(qkv, ["train", text, *TINY, "--steps", "200", "--lr", "1e8", "--warmup", "100", "--clip", "0", "--save-every", "1",
                  "--out", out], USAGE, "step ", "the first tensor that is not finite is ", "a smaller lr")
    assert all(np.isfinite(tensor).all() for tensor in load_file(out).values())


def test_a_validation_loss_that_is_not_finite_leaves_the_checkpoint(qkv, trained, text, tmp_path):
    out = tmp_path / "m"
    before = (trained[0] / "m.safetensors").read_bytes()
    out.write_bytes(before)
    refused(qkv, ["train", text, "--resume", out, "--steps", "61", "--lr", "1e9", "--min-lr", "1e9", "--weight-decay", "1e9"],
            USAGE, "step 61: the validation loss is nan; the first tensor that is not finite is ")
    kept = load_file(out)
    for name, tensor in load_file(trained[0] / "m.safetensors").items():
        assert np.array_equal(kept[name], tensor)
    # … and so does a state that is only a part, or none that a training leaves.
    tensors, metadata = load_file(trained[0] / "m.safetensors"), safe_open(trained[0] / "m.safetensors", "np").metadata()
    moment = "training.adamw.tok_emb.weight.exp_avg_sq"
    without = {name: tensor for name, tensor in tensors.items() if "adamw" not in name}
    for broken, says in ((without, "tok_emb.weight.step is missing; expected 60"), (tensors | {moment: -tensors[moment] - 1}, "below 0"),
                         (tensors | {"training.adamw.pos_emb.weight.step": np.array(59, np.float32)}, "pos_emb.weight.step is 59; expected 60")):
        save_file(broken, out, metadata)
        refused(qkv, ["train", text, "--resume", out, "--steps", "70"], DATA, says)


def test_a_small_file_does_not_ask_for_large_masks(qkv, trained, tmp_path):
    tensors, metadata = load_file(trained[0] / "m.safetensors"), safe_open(trained[0] / "m.safetensors", "np").metadata()
    model = {name: tensor for name, tensor in tensors.items() if not name.endswith(".mask") and "training" not in name}
    metadata = {key: value for key, value in metadata.items() if "training" not in key}
    save_file(model | {"pos_emb.weight": np.zeros((8192, 8), np.float32)}, tmp_path / "m", metadata)

    def little_memory():  # a mask of 8192 × 8192 takes 268 MB
        resource.setrlimit(resource.RLIMIT_AS, (200_000_000, 200_000_000))

    done = run(qkv, "generate", tmp_path / "m", "the ", "--tokens", "3", "--threads", "1", preexec_fn=little_memory)
    assert done.returncode == 0, done.stderr
    save_file(model | {"pos_emb.weight": np.zeros((8193, 8), np.float32)}, tmp_path / "m", metadata)
    refused(qkv, ["generate", tmp_path / "m", "the "], DATA, "context_length is 8193; expected at most 8192")


def test_early_stop_keeps_the_best(qkv, tmp_path):
    text = write_text(tmp_path / "t", words=60)
    said = train(qkv, text, *TINY, "--steps", "3000", "--lr", "0.03", "--early-stop", "3", "--out", tmp_path / "m.safetensors")
    assert "no better validation loss in 3 evaluations; the best model is " + str(tmp_path / "m.best.safetensors") in said
    last, best = (load_file(tmp_path / name)["training.validations"] for name in ("m.safetensors", "m.best.safetensors"))
    assert len(last) == len(best) + 3 < 300
    assert best[-1, 1] == last[:, 1].min()
    assert f"Wrote {tmp_path}/m.safetensors, {tmp_path}/m.best.safetensors" in said


def test_early_stop_goes_on_as_it_began(qkv, tmp_path):
    text = write_text(tmp_path / "t", words=60)
    options = [text, *TINY, "--lr", "0.03", "--early-stop", "3", "--warmup", "0", "--min-lr", "0.03", "--quiet"]
    train(qkv, *options, "--steps", "3000", "--out", tmp_path / "whole")
    train(qkv, *options, "--steps", "25", "--out", tmp_path / "m")
    train(qkv, text, "--resume", tmp_path / "m", "--steps", "3000", "--quiet")
    for name in ("whole", "m"):
        tensors = load_file(tmp_path / name)
        assert len(tensors["training.validations"]) == len(load_file(tmp_path / f"{name}.best")["training.validations"]) + 3
    assert np.array_equal(tensors["training.losses"][:20], load_file(tmp_path / "whole")["training.losses"][:20])
    # Without a best model that was kept, only what is still to come can be it.
    train(qkv, text, *TINY, "--lr", "0.03", "--steps", "400", "--out", tmp_path / "n", "--quiet")
    said = train(qkv, text, "--resume", tmp_path / "n", "--early-stop", "1", "--steps", "1000")
    assert (tmp_path / "n.best").exists() and "n.best" in said


def test_quiet_and_terminal(qkv, text, tmp_path):
    assert train(qkv, text, *TINY, "--steps", "5", "--quiet", "--out", tmp_path / "m") == ""
    process, master = start([str(qkv), "train", str(text), *TINY, "--steps", "30", "--out", str(tmp_path / "n")], 120, {})
    shown = read_all(master)
    assert process.wait(TIMEOUT) == 0
    assert shown.count("\r\x1b[Kstep ") >= 3
    assert "\r\x1b[Kstep 30/30 " in shown
    assert shown.endswith("\n")
    assert "% right)" in shown and "tokens/s" in shown
    for columns in (80, 40):  # a line that breaks is not renewed
        out = tmp_path / str(columns)
        process, master = start([str(qkv), "train", str(text), *TINY, "--steps", "30", "--out", str(out)], columns, {})
        lines = re.findall(r"\r\x1b\[K([^\r\n]*)", read_all(master))
        assert process.wait(TIMEOUT) == 0
        assert len(lines) >= 3 and max(map(len, lines)) < columns
    assert lines[-1].startswith("step 30/30  loss ")


def test_in_the_background_it_stays_deaf_to_ctrl_c(qkv, text, tmp_path):
    log = tmp_path / "log"
    process = subprocess.Popen([qkv, "train", text, *TINY, "--steps", str(STEPS), "--save-every", "7", "--quiet", "--log", log, "--out",
                                tmp_path / "m"], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_for_steps(log, 20, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 0
    assert len(load_file(tmp_path / "m")["training.losses"]) == STEPS


@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_a_task_is_learned(task, qkv, tmp_path):
    out = tmp_path / f"{task}.safetensors"
    said = train(qkv, "--task", task, "--context", "8", "--steps", "250", "--dim", "32", cwd=tmp_path)
    right = float(re.findall(r"\((\d+\.\d) % right\)", said)[-1])
    assert right >= 99.0, said
    prompt = "bdac>"
    answer = {"copy": "bdac", "reverse": "cadb"}[task]
    done = run(qkv, "generate", out, prompt, "--greedy", "--tokens", "4")
    assert done.stdout.decode() == prompt + answer + "\n"
