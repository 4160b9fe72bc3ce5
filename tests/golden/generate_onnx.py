"""Writes onnx_attention and onnx_rope (.safetensors and .json): ONNX's own cases of Attention and RotaryEmbedding.

    python3 tests/golden/generate_onnx.py

Needs onnx==1.23.2, ml_dtypes and safetensors. README.md beside this file describes the files.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "conformance"))
from onnx_cases import ONNX, collect  # noqa: E402

FILES = {"Attention": "onnx_attention", "RotaryEmbedding": "onnx_rope"}
SIZE_LIMIT = 600_000


def main():
    made_with = f"onnx {ONNX}, numpy {np.__version__}"
    everything = collect()
    for operator, stem in FILES.items():
        cases, tensors = [], {}
        for case in (case for case in everything if case.operator == operator):
            # present_key and present_value are past and new keys side by side: nothing of the library's.
            outputs = {name: array for name, array in case.outputs.items() if not name.startswith("present_")}
            arrays = case.inputs | outputs
            mask = case.inputs.get("attn_mask")
            cases.append({
                "name": case.name, "rtol": case.rtol, "atol": case.atol, "attributes": case.attributes,
                "dtype": next(iter(case.inputs.values())).dtype.name,
                "boolean_mask": mask is not None and mask.dtype == bool, "outputs": list(outputs)})
            # float32 holds every float16, bfloat16, boolean and position exactly: one type in the file.
            tensors |= {f"{case.name}.{name}": np.asarray(array, np.float32) for name, array in arrays.items()}
        save_file(tensors, HERE / f"{stem}.safetensors", metadata={"made_with": made_with})
        lines = ",\n  ".join(json.dumps(case) for case in cases)
        (HERE / f"{stem}.json").write_text(f'{{"made_with": "{made_with}", "cases": [\n  {lines}\n]}}\n')
        size = (HERE / f"{stem}.safetensors").stat().st_size
        assert size < SIZE_LIMIT, size
        print(operator, len(cases), "cases,", size, "bytes")


if __name__ == "__main__":
    main()
