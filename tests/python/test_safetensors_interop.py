"""Files go both ways between qkv and the reference reader, and both accept and refuse the same ones.

Needs numpy and safetensors (0.8.0) from PyPI and the program safetensors_copy from the C++ tests.
"""

import collections
import json
import random
import re
import struct
import subprocess

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

SEED = 20240609
MUTATED_FILES = 6000

TYPES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "I32": 4, "F8_E4M3": 1, "F4": 0.5, "C64": 8}
NUMBERS = ["0", "1", "2", "7", "-1", "-0", "1.0", "1e1", "4294967296", "2147483648", "9223372036854775807",
           "9223372036854775808", "18446744073709551615", "18446744073709551616", "null", '"4"', "true", "[]", "{}",
           "1e999", "0x10", "00"]
NAMES = ['"t0"', '"\\u00740"', '""', '"__metadata__"', '"a\\u0000b"', '"\\ud800"', '"\\u202e"', '"😀"', "null", '"t1']
EXTRAS = [',"dtype":"F32"', ',"shape":[]', ',"data_offsets":[0,0]', ',"x":1', ',"x":{"y":[[]]}', ",", "}",
          ',"\\u0064type":"F32"']
METADATA = ["{}", "null", "[]", '{"a":1}', '{"a":null}', '{"a":"b","a":"c"}', '{"a":{}}', '"x"']
AROUND = [" ", "\n", "x", "{}", "[", "   ", "\ufeff", "\0"]


def qkv_read(program_dir, paths, target=None):
    """What qkv says to each file: ("ok", names) or ("error" or "unsupported", message)."""
    command = [program_dir / "safetensors_copy"] + ([target] if target else [])
    done = subprocess.run(command, input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, check=True)
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == len(paths), done.stderr
    return [tuple(line.split("\t", 1)) if "\t" in line else (line, "") for line in lines]


def reference_read(path):
    """None if the reference reader accepts the file, else its message."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            file.keys()
        return None
    except safetensors.SafetensorError as error:
        return str(error)


def frame(header, data, length_error=0):
    return struct.pack("<Q", max(0, len(header) + length_error)) + header + data


class File:
    """A correct file whose fields are JSON text, so that a fault may put anything there."""

    def __init__(self, rng):
        self.rng, self.tensors, self.data = rng, [], b""
        self.metadata, self.prefix, self.suffix, self.length_error = "", "", "", 0
        for index in range(rng.randrange(5)):
            dtype = rng.choice(list(TYPES))
            shape = [rng.randrange(5) for _ in range(rng.randrange(4))]
            size = int(np.prod(shape, dtype=int) * TYPES[dtype])
            offsets = [len(self.data), len(self.data) + size]
            self.data += bytes(rng.randrange(2) for _ in range(size))
            self.tensors.append(dict(name=f'"t{index}"', dtype=f'"{dtype}"', shape=[str(s) for s in shape],
                                     offsets=[str(o) for o in offsets], extra=""))
        if rng.randrange(3) == 0:
            self.metadata = '{"format":"pt"}'

    def fault(self):
        rng = self.rng
        if not self.tensors:
            self.tensors.append(dict(name='"t0"', dtype='"F32"', shape=["0"], offsets=["0", "0"], extra=""))
        tensor = rng.choice(self.tensors)
        kind = rng.randrange(12)
        if kind == 0:
            tensor["name"] = rng.choice(NAMES)
        elif kind == 1:
            tensor["dtype"] = rng.choice(['"F32"', '"f32"', '"I64"', '"X"', "3", "null", '["F32"]'])
        elif kind == 2:
            tensor["shape"].append(rng.choice(NUMBERS))
        elif kind in (3, 4) and tensor["shape" if kind == 3 else "offsets"]:
            values = tensor["shape" if kind == 3 else "offsets"]
            values[rng.randrange(len(values))] = rng.choice(NUMBERS)
        elif kind == 5:
            tensor["offsets"] = tensor["offsets"][:-1] if rng.randrange(2) else tensor["offsets"] + [rng.choice(NUMBERS)]
        elif kind == 6:
            tensor["extra"] = rng.choice(EXTRAS)
        elif kind == 7:
            self.tensors.append(dict(tensor))
        elif kind == 8:
            self.metadata = rng.choice(METADATA)
        elif kind == 9:
            if rng.randrange(2):
                self.prefix = rng.choice(AROUND)
            else:
                self.suffix = rng.choice(AROUND)
        elif kind == 10:
            self.data = self.data[: rng.randrange(len(self.data) + 1)] + bytes(rng.randrange(4))
        elif kind == 11:
            self.length_error = rng.randrange(-8, 9)

    def serialise(self):
        entries = [f'"__metadata__":{self.metadata}'] if self.metadata else []
        for tensor in self.tensors:
            entries.append(f'{tensor["name"]}:{{"dtype":{tensor["dtype"]},"shape":[{",".join(tensor["shape"])}],'
                           f'"data_offsets":[{",".join(tensor["offsets"])}]{tensor["extra"]}}}')
        header = self.prefix + "{" + ",".join(entries) + "}" + self.suffix
        return frame(header.encode(), self.data, self.length_error)


# Where qkv refuses what the reference accepts: the message, and why that is meant.
STRICTER = {
    r"the header begins with": "the format says that a header begins with {; the reference lets white space pass",
    r"has the unknown key": "a key that no reader knows is a place to hide content",
    r'the tensor name ".*" appears twice': "the format forbids duplicate keys; the reference keeps the last",
    r'has the key ".*" twice': "the same, below the top level",
    r"the key \"__metadata__\" appears twice": "the same, for the metadata",
    r"contains a NUL": "a C string would end there",
    r"__metadata__ is null; expected an object": "the format says an object",
    r"more elements than 64 bits count": "sizes that overflow behind a 0",
    r'has "(9223372036854775808|18446744073709551615)" in its shape': "a size past 2^63 next to a 0, which no signed size can hold",
}


def test_every_type_arrives(program_dir, tmp_path):
    tensors = {
        "f16": np.array([1.5, -65504, 6e-8, np.inf], np.float16), "f32": np.array([[0.1, -0.0], [np.inf, 1e-45]], np.float32),
        "f64": np.array([0.1, 5e-324]), "scalar": np.array(3.0, np.float32), "empty": np.zeros((2, 0), np.float32),
        "bool": np.array([True, False]), "é \"😀": np.arange(3, dtype=np.int64), "u8": np.arange(256, dtype=np.uint8),
        "i8": np.arange(-128, 128, dtype=np.int8), "i16": np.array([-32768, 32767], np.int16),
        "u16": np.array([65535], np.uint16), "i32": np.array([-(2**31), 2**31 - 1], np.int32),
        "u32": np.array([2**32 - 1], np.uint32), "u64": np.array([2**63], np.uint64),
    }
    source, target = tmp_path / "all.safetensors", tmp_path / "out"
    target.mkdir()
    save_file(tensors, source, metadata={"format": "np"})
    (status, names), = qkv_read(program_dir, [source], target)
    assert status == "ok", names
    assert set(names.split("\t")) == set(tensors)
    copied = load_file(target / source.name)
    assert set(copied) == set(tensors)
    for name, tensor in tensors.items():
        assert copied[name].dtype == np.float64
        assert copied[name].shape == tensor.shape
        expected = tensor.astype(np.float64)
        assert copied[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("count", [0, 1, 500])
def test_random_dictionaries_arrive(program_dir, tmp_path, count):
    rng = np.random.default_rng(SEED + count)
    tensors = {f"layer.{index}.weight": rng.standard_normal(rng.integers(0, 6, rng.integers(0, 4))).astype(np.float32)
               for index in range(count)}
    (tmp_path / "out").mkdir()
    save_file(tensors, tmp_path / "r.safetensors")
    (status, _), = qkv_read(program_dir, [tmp_path / "r.safetensors"], tmp_path / "out")
    assert status == "ok"
    copied = load_file(tmp_path / "out" / "r.safetensors")
    assert set(copied) == set(tensors)
    assert all(np.array_equal(copied[name], tensors[name]) for name in tensors)


def test_both_readers_judge_alike(program_dir, tmp_path):
    rng = random.Random(SEED)
    print("seed", SEED)
    paths = []
    for index in range(MUTATED_FILES):
        file = File(rng)
        for _ in range(rng.randrange(4)):
            file.fault()
        paths.append(tmp_path / f"{index}.safetensors")
        paths[-1].write_bytes(file.serialise())
    counts = collections.Counter()
    wrong = []
    for path, (status, message) in zip(paths, qkv_read(program_dir, paths)):
        refused = reference_read(path)
        # The comparison is about headers: a type that qkv reads past but does not convert is accepted, and so is a
        # file whose only fault is a value without a double.
        accepts = status in ("ok", "unsupported") or "has no double of the same value" in message
        if accepts == (refused is None):
            counts["both accept" if accepts else "both refuse"] += 1
        elif refused is not None:
            wrong.append((path.read_bytes(), "accepted, but the reference says: " + refused))
        else:
            reason = next((pattern for pattern in STRICTER if re.search(pattern, message)), None)
            counts["stricter: " + STRICTER[reason] if reason else "unexplained"] += 1
            if reason is None:
                wrong.append((path.read_bytes(), "refused: " + message))
    print(json.dumps(counts, indent=2))
    assert not wrong, f"{len(wrong)} unexplained, the first: {wrong[:3]}"
    assert counts["both accept"] > MUTATED_FILES / 20
    assert counts["both refuse"] > MUTATED_FILES / 20
