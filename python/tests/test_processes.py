"""Threads, fork and spawn."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import qkv

LARGE = np.random.default_rng(0).standard_normal((1, 8, 512, 64)).astype(np.float32)


def attend(seed):
    x = np.random.default_rng(seed).standard_normal((1, 4, 256, 32)).astype(np.float32)
    return float(qkv.attention(x, x, x, runtime=qkv.Runtime(2)).sum()), float(qkv.attention(x, x, x).sum())


def test_a_forked_child_has_threads_of_its_own():
    qkv.set_threads(2)
    expected = qkv.attention(LARGE, LARGE, LARGE)  # the parent's threads are running now
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        same = np.array_equal(qkv.attention(LARGE, LARGE, LARGE), expected)
        os.write(writer, b"same" if same else b"other")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"same"
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(qkv.attention(LARGE, LARGE, LARGE), expected)
    qkv.set_threads(0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method):
    here = [attend(seed) for seed in range(4)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(attend, range(4), chunksize=1) == here


def test_many_threads_share_one_runtime():
    runtime = qkv.Runtime(2)
    expected = qkv.attention(LARGE, LARGE, LARGE, runtime=runtime)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for out in pool.map(lambda _: qkv.attention(LARGE, LARGE, LARGE, runtime=runtime), range(16)):
            assert np.array_equal(out, expected)


def test_a_call_lets_other_threads_run():
    x = np.random.default_rng(0).standard_normal((1, 4, 2048, 64)).astype(np.float32)
    calling, seen = threading.Event(), []

    def watch():
        calling.wait()
        while calling.is_set():
            seen.append(time.perf_counter())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    calling.set()
    begin = time.perf_counter()
    qkv.attention(x, x, x, runtime=qkv.Runtime(1))
    end = time.perf_counter()
    calling.clear()
    watcher.join()
    assert end - begin > 0.01
    # With the GIL kept there would be one moment before and one after.
    assert sum(begin + 0.002 < moment < end - 0.002 for moment in seen) >= 2


@pytest.mark.parametrize("value, expected", [("3", "3"), ("", None), ("many", "ValueError")])
def test_the_environment_sets_the_threads(value, expected):
    run = subprocess.run([sys.executable, "-c", "import qkv; print(qkv.get_threads())"], capture_output=True, text=True,
                         check=False, env=os.environ | {"QKV_NUM_THREADS": value})
    if expected == "ValueError":
        assert "QKV_NUM_THREADS is 'many'; expected a whole number" in run.stderr
    else:
        assert run.stdout.strip() == (expected or str(qkv.Runtime().threads))


def test_a_long_call_lets_others_work_and_is_interrupted_when_it_ends():
    code = """
import _thread, signal, threading, time
import numpy as np, qkv
x = np.ones((1, 8, 2048, 64), np.float32)
one = qkv.Runtime(1)
start = time.perf_counter()
qkv.attention(x, x, x, runtime=one)
alone = time.perf_counter() - start
beats, done = [], threading.Event()
def other():
    while not done.wait(alone / 20):
        beats.append(time.perf_counter())
threading.Thread(target=other).start()
threading.Timer(alone / 4, _thread.interrupt_main).start()
out = np.zeros_like(x)
start = time.perf_counter()
try:
    qkv.attention(x, x, x, runtime=one, out=out)
    after = time.perf_counter()
    print("not interrupted")
except KeyboardInterrupt:
    after = time.perf_counter()
    print("interrupted", "whole" if (out == 1).all() else "in part")
done.set()
print(sum(start < beat < after for beat in beats) >= 3)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.stdout.split("\n")[:2] == ["interrupted whole", "True"], shown.stdout + shown.stderr
