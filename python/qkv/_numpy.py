"""bfloat16 for NumPy, which has no such type of its own."""

from typing import Any


def bfloat16(halves: object, dtype: Any, copy: bool | None) -> Any:
    """The elements whose bits `halves` holds as float16: as ml_dtypes' type where `dtype` is None, else as that."""
    import numpy as np

    bits = np.asarray(halves).view(np.uint16)
    if dtype is not None and np.dtype(dtype).name != "bfloat16":
        if copy is False:
            raise ValueError(f"copy is False and dtype {np.dtype(dtype).name}; expected None, to share bfloat16")
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(dtype)
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("NumPy has no bfloat16; install ml_dtypes, or ask for a type that it has, as in "
                        "numpy.asarray(array, dtype='float32')") from None
    return np.array(bits.view(ml_dtypes.bfloat16), copy=bool(copy) or None)
