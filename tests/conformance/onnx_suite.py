"""ONNX's node cases of Attention and RotaryEmbedding through qkv."""

import ml_dtypes
import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx_cases import collect, schema_of
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
        return f"largest difference {np.abs(got - expected).max():.3g}"


def step(values):
    """The distance from each |value| to the next bfloat16."""
    return np.exp2(np.frexp(values)[1] - 8.0)


def in_float64(case):
    """The outputs that ONNX's reference implementation gives when the inputs' values are float64."""
    given = {name: np.asarray(array, np.float64) if array.dtype == BFLOAT16 else array
             for name, array in case.inputs.items()}
    node = case.model.graph.node[0]
    names = {formal.name: name for formal, name in zip(schema_of(case.model, node).inputs, node.input)}
    outputs = ReferenceEvaluator(case.model).run(None, {names[formal]: array for formal, array in given.items()})
    return dict(zip(case.outputs, outputs, strict=True))


def judge_bfloat16(got, expected, exact):
    """Why `got` misses the rule for bfloat16, or None. `exact` is what the float64 inputs give."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{got.dtype} {got.shape}; expected {expected.dtype} {expected.shape}"
    got, expected = (np.asarray(array, np.float64) for array in (got, expected))
    if not np.all(np.abs(got - expected) <= step(np.abs(expected).max())):
        return f"{np.abs(got - expected).max():.3g} from the expected values"
    if not np.all(np.abs(got - exact) <= step(exact)):
        return f"{np.max(np.abs(got - exact) / step(exact)):.3g} steps of bfloat16 from the exact values"
    return None


def run():
    rule = "ONNX's own tolerance of each case (rtol 10⁻³, atol 10⁻⁷); bfloat16: see below"
    tallies = {name: Tally(f"ONNX {name}", rule if name == "Attention" else rule.split(";")[0]) for name in OPERATORS}
    beyond = []
    for case in collect():
        try:
            got = OPERATORS[case.operator](case.attributes, case.inputs, list(case.outputs))
        except Exception as error:  # a case that cannot be run is a miss with its reason, and the others go on
            tallies[case.operator].add(case.name, f"{type(error).__name__}: {error}")
            continue
        misses = {name: official(got[name], expected, case.rtol, case.atol) for name, expected in case.outputs.items()}
        if any(misses.values()) and next(iter(case.inputs.values())).dtype == BFLOAT16:
            beyond.append(case.name)
            exact = in_float64(case)
            misses = {name: judge_bfloat16(got[name], case.outputs[name], exact[name]) for name in misses}
        reasons = [f"{name}: {reason}" for name, reason in misses.items() if reason is not None]
        tallies[case.operator].add(case.name, "; ".join(reasons) or None)
    if beyond:
        tallies["Attention"].notes.append(
            f"{len(beyond)} bfloat16 cases hold another rule than ONNX's tolerance ({', '.join(beyond)}). Their expected "
            "values were rounded to bfloat16 between the steps, which moves them by more than 10⁻³. They are judged "
            "twice: by one step of bfloat16, at the tensor's largest value, from the expected values, and by one step, "
            "at each value, from what ONNX's reference implementation gives for the same inputs in float64.")
    return list(tallies.values())
