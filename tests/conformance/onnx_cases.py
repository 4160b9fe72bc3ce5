"""ONNX's own node tests of one operator, as plain data."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

ONNX = "1.23.2"
COUNTS = {"Attention": 93, "RotaryEmbedding": 8}


class Case(NamedTuple):
    """One node. Inputs and outputs are named as the operator's definition names them; those left out are absent."""

    name: str
    operator: str
    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    rtol: float
    atol: float
    model: onnx.ModelProto


def named(definition: Any, given: Any, arrays: Any) -> dict[str, np.ndarray]:
    """The arrays that a node lists, by their names in the operator's definition: an empty name is one left out."""
    arrays = iter(arrays)
    return {formal.name: np.asarray(next(arrays)) for formal, name in zip(definition, given) if name}


def schema_of(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(node.op_type, model.opset_import[0].version)


def collect() -> list[Case]:
    """The cases of both operators. Those in which the same operator is spelled out in others are not among them."""
    if onnx.__version__ != ONNX:
        raise SystemExit(f"needs onnx=={ONNX}, found {onnx.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators overflow on purpose while they are collected
        found = collect_testcases()
    cases = []
    for case in found:
        node = case.model.graph.node[0]
        if node.op_type not in COUNTS or len(case.model.graph.node) != 1 or node.domain:
            continue
        schema = schema_of(case.model, node)
        ((inputs, outputs),) = case.data_sets
        cases.append(Case(case.name.removeprefix("test_"), node.op_type,
                          {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
                          named(schema.inputs, node.input, inputs), named(schema.outputs, node.output, outputs),
                          case.rtol, case.atol, case.model))
    for operator, count in COUNTS.items():
        if sum(case.operator == operator for case in cases) != count:
            raise SystemExit(f"onnx {ONNX} has {count} cases of {operator}; found another number")
    return cases
