"""The judges see a wrong result: each suite's rule on something a little off, and qkv's own mistakes as misses."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torch"))

import drop_in  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import onnx_operators  # noqa: E402
import onnx_suite  # noqa: E402
import opinfo_suite  # noqa: E402
import random_suite  # noqa: E402
import sdpa_suite  # noqa: E402
import torch  # noqa: E402
from error_rule import judge  # noqa: E402


def test_onnx_tolerance():
    expected = np.linspace(-1, 1, 7, dtype=np.float32)
    assert onnx_suite.official(expected.copy(), expected, 1e-3, 1e-7) is None
    assert onnx_suite.official(expected * np.float32(1.002), expected, 1e-3, 1e-7)
    assert onnx_suite.official(expected.astype(np.float64), expected, 1e-3, 1e-7)
    assert onnx_suite.official(expected[None], expected, 1e-3, 1e-7)
    assert onnx_suite.official(np.full(7, np.nan, np.float32), expected, 1e-3, 1e-7)


def test_bfloat16_rule():
    exact = np.array([0.3, 0.9])
    right = exact.astype(ml_dtypes.bfloat16)
    assert onnx_suite.judge_bfloat16(right, right, exact) is None
    for wrong in (np.array([0.3, 0.91]), np.array([0.3, np.nan]), np.array([0.305, 0.9])):
        assert onnx_suite.judge_bfloat16(wrong.astype(ml_dtypes.bfloat16), right, exact)
    assert onnx_suite.judge_bfloat16(right, np.array([0.3, 0.91]).astype(ml_dtypes.bfloat16), exact)


def test_a_wrong_operator_misses(monkeypatch):
    right = onnx_operators.mask_of

    def top_left(attributes, attn_mask, nonpad_kv_seqlen, keys, dtype):
        return right({**attributes, "is_causal": 0}, attn_mask, nonpad_kv_seqlen, keys, dtype)

    monkeypatch.setattr(onnx_operators, "mask_of", top_left)
    tally = onnx_suite.run()[0]
    assert 0 < tally.passed < tally.cases
    assert "attention_4d_causal" in dict(tally.misses)


def test_error_rule():
    problem = random_suite.sdpa_problem(3)
    got, exact, plain = drop_in.answers(problem)
    assert not isinstance(judge(problem, got, exact, plain), str)
    for name in exact:
        off = got[name].clone()
        off.view(-1)[0] += 0.1 * exact[name].abs().max() + 0.1
        assert name in judge(problem, got | {name: off}, exact, plain)
        off.view(-1)[0] = torch.nan
        assert name in judge(problem, got | {name: off}, exact, plain)


def test_a_wrong_drop_in_misses(monkeypatch):
    right = drop_in.ours

    def one_percent_off(q, k, v, **options):
        return right(q, k, v * 1.01, **options)

    monkeypatch.setattr(drop_in, "ours", one_percent_off)
    monkeypatch.setattr(sdpa_suite, "ours", one_percent_off)
    verdicts = [random_suite.sdpa_case(seed)[1] for seed in range(20)]
    assert sum(isinstance(verdict, str) for verdict in verdicts) > 10
    assert sdpa_suite.named().misses
    sample = opinfo_suite.samples(opinfo_suite.the_operator(), torch.float64)[0]
    assert opinfo_suite.gradients_hold(torch.autograd.gradcheck, opinfo_suite.problem_of(sample, torch.float64, 0)) is None
    assert sdpa_suite.beside_math([(1, 1, 5, 4)] * 3, torch.float32, False)
