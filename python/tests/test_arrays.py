"""What is taken for an array, what is given back, and what is refused."""

import array
import ctypes
import gc
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest
import qkv


class OnlyDlpack:
    """DLPack and nothing else, from a NumPy array or a qkv.Array."""

    def __init__(self, inner, versioned=True):
        self.inner, self.versioned = inner, versioned

    def __dlpack__(self, **options):
        if not self.versioned:
            if options:
                raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
            return self.inner.__dlpack__()
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.inner.__dlpack_device__()


X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
EXPECTED = qkv.attention(X, X, X)


@pytest.mark.parametrize("wrap", [
    lambda x: memoryview(x), lambda x: OnlyDlpack(x), lambda x: OnlyDlpack(x, versioned=False),
    lambda x: memoryview(array.array("f", x.ravel().tolist())).cast("B").cast("f", x.shape)],
    ids=["memoryview", "dlpack", "old dlpack", "array.array"])
def test_arrays_of_all_kinds(wrap):
    assert np.array_equal(qkv.attention(wrap(X), wrap(X), wrap(X)), EXPECTED)


def test_read_only_arrays_are_read_but_not_written():
    frozen = X.copy()
    frozen.flags.writeable = False
    assert np.array_equal(qkv.attention(frozen, frozen, frozen), EXPECTED)
    with pytest.raises(BufferError, match="^out is read-only"):
        qkv.attention(X, X, X, out=frozen)
    with pytest.raises(BufferError, match="^out is read-only"):
        qkv.attention(X, X, X, out=bytes(96))
    with pytest.raises(BufferError, match="^lse is read-only"):
        qkv.attention_with(X, X, X, lse=np.broadcast_to(np.float32(0), (6,)))


def test_an_array_of_its_own_for_what_numpy_lacks():
    low = OnlyBfloat(X)
    out = qkv.attention(low, low, low)
    assert type(out) is qkv.Array and out.dtype == "bfloat16" and out.shape == (6, 4) and out.nbytes == 48
    assert len(out) == 6 and repr(out) == "qkv.Array(shape=(6, 4), dtype=bfloat16)"
    with pytest.raises(BufferError, match="use DLPack"):
        memoryview(out)
    as_numpy = qkv.attention(X.astype(ml_dtypes.bfloat16), *2 * [X.astype(ml_dtypes.bfloat16)])
    assert as_numpy.dtype == ml_dtypes.bfloat16
    assert np.array_equal(bits_of(out), as_numpy.view(np.uint16))
    assert type(qkv.attention(out, out, out)) is qkv.Array and out.__dlpack_device__() == (1, 0)


def test_numpy_takes_bfloat16_by_ml_dtypes_or_widened(monkeypatch):
    low = X.astype(ml_dtypes.bfloat16)
    out = qkv.attention(*3 * [OnlyBfloat(X)])
    shared = np.asarray(out)
    assert type(out) is qkv.Array and shared.dtype == ml_dtypes.bfloat16
    assert np.array_equal(shared, qkv.attention(low, low, low))
    shared[0, 0] = 3
    assert np.asarray(out)[0, 0] == 3 and not np.shares_memory(np.array(out), shared)
    assert np.shares_memory(np.asarray(out, dtype=ml_dtypes.bfloat16, copy=False), shared)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    wide = np.asarray(out, dtype=np.float64)
    assert wide.dtype == np.float64 and np.array_equal(wide, shared.astype(np.float64))
    with pytest.raises(TypeError, match="^NumPy has no bfloat16; install ml_dtypes"):
        np.asarray(out)
    with pytest.raises(ValueError, match="^copy is False and dtype float32"):
        np.asarray(out, dtype=np.float32, copy=False)


class OnlyBfloat:
    """A bfloat16 array that speaks DLPack, as PyTorch's do; NumPy and ml_dtypes export none."""

    def __init__(self, values):
        self.bits = values.astype(ml_dtypes.bfloat16).view(np.uint16)

    def __dlpack__(self, *, max_version=None, **_):
        return retyped(self.bits.__dlpack__(), 1, 4)

    def __dlpack_device__(self):
        return (1, 0)


class Given:
    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **_):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)


def bits_of(low):
    return np.from_dlpack(Given(retyped(low.__dlpack__(), 4, 1)))


def retyped(capsule, before, after):
    """A DLPack capsule with the code of its type changed in place: 1 unsigned, 4 bfloat."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # DLTensor: data 8 bytes, device 8, rank 4, then the type's code.
    code = ctypes.c_uint8.from_address(get(capsule, b"dltensor") + 20)
    assert code.value == before
    code.value = after
    return capsule


def test_without_numpy_results_are_arrays_of_its_own():
    code = """
import sys
sys.modules["numpy"] = None
import array, qkv
x = memoryview(array.array("f", [1, 0, 0, 1])).cast("B").cast("f", (2, 2))
out = qkv.attention(x, x, x, scale=0.0)
assert type(out) is qkv.Array and memoryview(out).tolist() == [[0.5, 0.5], [0.5, 0.5]], out
assert qkv.Generator(1).rand((2, 3)).shape == (2, 3)
layer = qkv.nn.SelfAttention(2, 2)
assert memoryview(layer(x)).shape == (2, 2)
result = qkv.attention_with(out, out, out, lse=True)
assert memoryview(result.lse).shape == (2,)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_memory_outlives_its_producer():
    out = qkv.attention(X, X, X)
    shared = np.from_dlpack(out)
    kept = out.copy()
    del out
    gc.collect()
    assert np.array_equal(shared, kept)


def test_inputs_are_let_go():
    x = X.copy()
    mask = qkv.Mask.bias(x[:, :1])
    gone = weakref.ref(x)
    del x
    gc.collect()
    qkv.attention(X, X, X, mask=qkv.Mask.causal("top_left") & mask)
    del mask
    gc.collect()
    assert gone() is None
    count = sys.getrefcount(X)
    for _ in range(10):
        qkv.attention(X, X, X)
        with pytest.raises(ValueError):
            qkv.attention(X, X, X[:, :2], mask=qkv.Mask.bias(X))
    assert sys.getrefcount(X) == count


class OnDevice:
    def __dlpack__(self, **_):
        raise BufferError("no such device here")

    def __dlpack_device__(self):
        return (2, 0)


BAD = {
    "text": ("a text", TypeError, "^k is a str"),
    "list": ([[1.0]], TypeError, "^k is a list"),
    "none": (None, TypeError, "^k is a NoneType"),
    "integers": (X.astype(np.int32), TypeError, "^k has elements of type int32"),
    "complex": (X.astype(np.complex64), TypeError, "^k has elements of format 'Zf'"),
    "objects": (X.astype(object), TypeError, "^k has elements of format 'O'"),
    "swapped": (X.astype(">f4"), TypeError, "^k has elements of format '>f'"),
    "bool": (X > 0, TypeError, "^k has type bool"),
    "other type": (X.astype(np.float64), TypeError, "^k has type float64; expected float32"),
    "device": (OnDevice(), BufferError, "^k cannot be read: no such device here"),
    "rank 1": (X[0], ValueError, r"^k has shape \(4,\)"),
    "rank 5": (X[None, None, None], ValueError, r"^k has shape \(1, 1, 1, 6, 4\)"),
    "rank 3": (X[None], ValueError, r"^k has shape \(1, 6, 4\); expected 2 dimensions, as q has"),
    "width": (X[:, :3], ValueError, "^k has shape"),
    "last stride": (np.ascontiguousarray(X.T).T, ValueError, "^k has last stride 6; expected 1"),
    "odd bytes": (np.frombuffer(bytes(97), np.uint8)[1:].view(np.float32).reshape(6, 4), ValueError, "^k is not aligned"),
    "odd stride": (np.lib.stride_tricks.as_strided(X.copy(), (3, 4), (18, 4)), ValueError,
                   "^k has a stride of 18 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused_by_name(name):
    bad, exception, message = BAD[name]
    out = np.full_like(X, 7)
    with pytest.raises(exception, match=message):
        qkv.attention(X, bad, X, out=out)
    assert (out == 7).all()


OTHER = {
    "mask": (dict(mask=True), TypeError, "^mask is a bool; expected a qkv.Mask"),
    "dropout": (dict(dropout=0.5), TypeError, "^dropout is a float; expected a qkv.Dropout"),
    "offsets": (dict(offsets=3), TypeError, "^offsets is a int"),
    "runtime": (dict(runtime=4), TypeError, "^runtime is a int"),
    "scale": (dict(scale=float("nan")), ValueError, "^scale is nan"),
    "softcap": (dict(softcap=-1.0), ValueError, "^softcap is -1"),
    "sinks": (dict(sinks=np.zeros((1, 1, 1), np.float32)), ValueError, "^sinks has shape"),
    "p": (dict(dropout=qkv.Dropout(1.5)), ValueError, "dropout"),
    "out shape": (dict(out=np.empty((6, 5), np.float32)), ValueError, "^out has shape"),
    "out type": (dict(out=np.empty((6, 4), np.float64)), TypeError, "^out has type float64"),
    "overlap": (dict(out=X), ValueError, "^out overlaps q"),
    "mask shape": (dict(mask=qkv.Mask.allowed(X[:, :3] > 0)), ValueError, "shape"),
    "mask type": (dict(mask=qkv.Mask.allowed(X)), TypeError, "type float32; expected bool"),
    "key_end": (dict(mask=qkv.Mask.key_end([1, 2])), ValueError, "key_end"),
}


@pytest.mark.parametrize("name", OTHER)
def test_bad_options_are_refused_by_name(name):
    options, exception, message = OTHER[name]
    with pytest.raises(exception, match=message):
        qkv.attention(X, X, X, **options)


@pytest.mark.parametrize("make, exception, message", [
    (lambda: qkv.Mask.causal("left"), ValueError, "^align is 'left'; expected 'top_left', 'bottom_right' or a w"),
    (lambda: qkv.Mask.causal(None), TypeError, "^align is a NoneType"),
    (lambda: qkv.Mask.window(1, 0, 3), TypeError, "^align is a int; expected 'top_left' or 'bottom_right'"),
    (lambda: qkv.Mask.key_end([2, 1.5]), TypeError, r"^end\[1\] is a float; expected a whole number"),
    (lambda: qkv.Mask.key_end(np.zeros((2, 2), np.int64)), ValueError, "^end has shape"),
    (lambda: qkv.Mask.key_end(np.zeros(2)), TypeError, "^end has elements of type float64"),
    (lambda: qkv.Mask.key_end([2**70]), ValueError, r"^end\[0\] is 1180591620717411303424; expected"),
    (lambda: qkv.Mask.key_end(np.array([2**63], np.uint64)), ValueError, "^end holds 9223372036854775808"),
    (lambda: qkv.Mask.bias(X) & qkv.Mask.bias(X), ValueError, "bias"),
    (lambda: qkv.Mask.bias(X) & True, TypeError, "unsupported operand"),
    (lambda: qkv.Runtime(-1), ValueError, "threads is -1"),
    (lambda: qkv.set_threads(5000), ValueError, "threads is 5000"),
    (lambda: qkv.attention_with(X, X, X, scores=True, scores_at="end"), ValueError, "^scores_at is 'end'"),
    (lambda: qkv.attention_backward(X, X, X, X, X, X[:, 0], dbias=True), ValueError, "^dbias is wanted without"),
    (lambda: qkv.attention_with(X, X, X, lse=np.zeros((1, 1, 1, 6), np.float32)), ValueError, "^lse has shape"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_calls_are_refused(make, exception, message):
    with pytest.raises(exception, match=message):
        make()


def test_small_integers_of_every_kind_are_whole_numbers():
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        ends = np.array([0, 3, 0, 5], kind)[1::2]
        out = qkv.attention(*3 * [X[None].repeat(2, axis=0)[:, None]], mask=qkv.Mask.key_end(ends))
        assert np.array_equal(out[0, 0], qkv.attention(X, X[:3], X[:3]))
    negative = np.array([-1], np.int8)
    with pytest.raises(ValueError, match="-1"):
        qkv.attention(X, X, X, mask=qkv.Mask.key_end(negative))
