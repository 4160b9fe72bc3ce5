"""Writes onnx_rope.safetensors and onnx_rope.json: ONNX's own cases of RotaryEmbedding. Needs onnx==1.23.2, safetensors.

    python3 tests/golden/generate_onnx_rope.py

README.md beside this file describes both.
"""

import json
from pathlib import Path

import numpy
import onnx
from onnx.backend.test.case.node import collect_testcases
from safetensors.numpy import save_file

ONNX = "1.23.2"
NAMES = ("x", "cos", "sin", "positions")


def main():
    if onnx.__version__ != ONNX:
        raise SystemExit(f"needs onnx=={ONNX}, found {onnx.__version__}")
    made_with = f"onnx {ONNX}, numpy {numpy.__version__}"
    cases, tensors = [], {}
    for case in collect_testcases("RotaryEmbedding"):
        node = case.model.graph.node[0]
        if node.op_type != "RotaryEmbedding":
            continue  # the operator spelled out in others, once more for each case
        ((inputs, outputs),) = case.data_sets
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        cases.append({"name": case.name, "rtol": case.rtol, "atol": case.atol, "attributes": attributes})
        given = dict(zip(NAMES, inputs, strict=False)) | {"y": outputs[0]}
        tensors |= {f"{case.name}.{name}": numpy.asarray(value, numpy.float32) for name, value in given.items()}
    folder = Path(__file__).parent
    save_file(tensors, folder / "onnx_rope.safetensors", metadata={"made_with": made_with})
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    (folder / "onnx_rope.json").write_text(f'{{"made_with": "{made_with}", "cases": [\n  {lines}\n]}}\n')
    print(len(cases), "cases,", (folder / "onnx_rope.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
