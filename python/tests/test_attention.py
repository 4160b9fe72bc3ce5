"""The attention function over NumPy's arrays, against formula.py."""

import ml_dtypes
import numpy as np
import pytest
import qkv
from formula import attend, triangle

# Rounding of inputs is in the reference too: what is left is float32 sums, and the rounding of the result.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def arrays(seed, dtype="float32", batch=2, heads=4, kv_heads=2, queries=5, keys=7, dim=8, value_dim=6):
    draw = np.random.default_rng(seed)
    shapes = ((batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, value_dim))
    return [draw.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]


def close(given, expected, dtype="float32"):
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(np.asarray(given).astype(np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_gives_its_own(dtype):
    q, k, v = arrays(1, dtype)
    out = qkv.attention(q, k, v)
    assert isinstance(out, np.ndarray) and out.dtype == q.dtype and out.flags.owndata
    close(out, attend(q, k, v)[0], dtype)


def masks():
    draw = np.random.default_rng(7)
    allowed = draw.random((2, 1, 5, 7)) > 0.4
    allowed[0, 0, 2] = False
    bias = draw.standard_normal((4, 5, 7)).astype(np.float32)
    bias[1, 2, 3] = -np.inf
    keys = np.arange(7)
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    distance = np.abs(np.arange(5)[:, None] + 2 - keys[None, :])
    mask = qkv.Mask
    return {
        "none": (mask(), {}),
        "top_left": (mask.causal("top_left"), {"allowed": triangle(5, 7)}),
        "bottom_right": (mask.causal("bottom_right"), {"allowed": triangle(5, 7, "bottom_right")}),
        "offset": (mask.causal(1), {"allowed": triangle(5, 7) | np.eye(5, 7, 1, dtype=bool)}),
        "window": (mask.window(1, None, "top_left"),
                   {"allowed": keys[None, :] >= np.arange(5)[:, None] - 1}),
        "allowed": (mask.allowed(allowed), {"allowed": allowed}),
        "bias": (mask.bias(bias), {"bias": bias}),
        "alibi": (mask.alibi(slopes), {"bias": -slopes[:, None, None] * distance}),
        "key_end": (mask.key_end([3, 7]), {"allowed": keys < np.array([3, 7])[:, None, None, None]}),
        "key_begin": (mask.key_begin(np.array([2, 0], np.int32)),
                      {"allowed": keys >= np.array([2, 0])[:, None, None, None]}),
        "blocks": (mask.blocks(4, 4, starts=[0, 1, 3], key_blocks=[1, 0, 1]),
                   {"allowed": (keys[None, :] >= 4) | (np.arange(5)[:, None] >= 4)}),
        "several": (mask.causal("top_left") & mask.bias(bias) & mask.key_begin([1, 0]),
                    {"allowed": triangle(5, 7) & (keys >= np.array([1, 0])[:, None, None, None]), "bias": bias}),
    }


@pytest.mark.parametrize("name", masks())
def test_masks(name):
    mask, meaning = masks()[name]
    q, k, v = arrays(2)
    result = qkv.attention_with(q, k, v, mask=mask, weights=True, lse=True)
    context, weights, lse = attend(q, k, v, **meaning)
    close(result.context, context)
    close(result.weights, weights)
    close(result.lse, lse)
    assert np.array_equal(result.context, qkv.attention(q, k, v, mask=mask))


def test_a_packed_batch():
    q, k, v = arrays(3, batch=1, queries=6, keys=8)
    out = qkv.attention(q, k, v, mask=qkv.Mask.packed([0, 2, 6], (0, 5, 8)))
    close(out[:, :, :2], attend(q[:, :, :2], k[:, :, :5], v[:, :, :5])[0])
    close(out[:, :, 2:], attend(q[:, :, 2:], k[:, :, 5:], v[:, :, 5:])[0])


def test_scale_softcap_sinks_and_offsets():
    q, k, v = arrays(4)
    sinks = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
    context, _, lse = attend(q, k, v, scale=-0.3, softcap=1.5, sinks=sinks)
    result = qkv.attention_with(q, k, v, lse=True, scale=-0.3, softcap=1.5, sinks=sinks)
    close(result.context, context)
    close(result.lse, lse)
    shifted = qkv.attention(q, k, v, mask=qkv.Mask.causal("top_left"), offsets=qkv.Offsets(query=2))
    close(shifted, attend(q, k, v, allowed=triangle(5, 7, "bottom_right"))[0])


def test_fewer_dimensions():
    q, k, v = arrays(5, batch=1, kv_heads=4)
    full = qkv.attention_with(q, k, v, lse=True, weights=True)
    heads = qkv.attention_with(q[0], k[0], v[0], lse=True, weights=True)
    one = qkv.attention_with(q[0, 0], k[0, 0], v[0, 0], lse=True, weights=True)
    for wide, middle, narrow in zip(full[:3], heads[:3], one[:3]):
        assert np.array_equal(wide[0], middle) and np.array_equal(middle[0], narrow)


def test_scores_at_the_four_points():
    q, k, v = arrays(6, kv_heads=4)
    plain = q @ np.swapaxes(k, -1, -2) * 8**-0.5
    mask = qkv.Mask.causal("top_left")
    at = {point: qkv.attention_with(q, k, v, mask=mask, softcap=2.0, scores=True, scores_at=point).scores
          for point in ("scaled", "capped", "masked", "weights")}
    close(at["scaled"], plain)
    close(at["capped"], 2 * np.tanh(plain / 2))
    close(at["masked"], np.where(triangle(5, 7), 2 * np.tanh(plain / 2), -np.inf))
    close(at["weights"], attend(q, k, v, allowed=triangle(5, 7), softcap=2.0)[1])


def test_arrays_are_read_and_written_in_place_whatever_their_strides():
    q, k, v = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in arrays(8))
    assert not q.flags.c_contiguous
    out = np.full((2, 5, 4, 10), 7, np.float32).transpose(0, 2, 1, 3)[..., 2:8]
    given = qkv.attention(q, k, v, out=out)
    assert given is out
    close(out, attend(q, k, v)[0])
    around = out.base if out.base.shape[-1] == 10 else out.base.base
    assert (np.delete(around, np.s_[2:8], axis=-1) == 7).all()
    backwards = qkv.attention(q[:, :, ::-1], k, v)
    assert np.array_equal(backwards[:, :, ::-1], qkv.attention(q, k, v))


def test_extras_fill_what_is_handed_in():
    q, k, v = arrays(9)
    lse, weights = np.empty((2, 4, 5), np.float32), np.empty((2, 4, 5, 7), np.float16)
    result = qkv.attention_with(q, k, v, lse=lse, weights=weights)
    assert result.lse is lse and result.weights is weights and result.scores is None
    expected = attend(q, k, v)
    close(lse, expected[2])
    close(weights, expected[1], "float16")


def test_masked_memory_is_never_read_into_a_result():
    q, k, v = arrays(10)
    clean = qkv.attention(q, k, v, mask=qkv.Mask.key_end([4, 6]))
    k[0, :, 4:], v[0, :, 4:], k[1, :, 6:], v[1, :, 6:] = 4 * [np.nan]
    assert np.array_equal(qkv.attention(q, k, v, mask=qkv.Mask.key_end([4, 6])), clean)


def test_dropout_follows_its_seed_and_a_handed_in_mask():
    q, k, v = arrays(11, keys=64)
    one, again, other = (qkv.attention(q, k, v, dropout=qkv.Dropout(0.5, seed=s)) for s in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    keep = np.random.default_rng(0).random((2, 4, 5, 64)) > 0.5
    _, weights, _ = attend(q, k, v)
    close(qkv.attention(q, k, v, dropout=qkv.Dropout(0.5, keep=keep)),
          (weights * keep / 0.5) @ np.repeat(v.astype(np.float64), 2, axis=1))
    swapped = qkv.attention(q[::-1], k[::-1], v[::-1], dropout=qkv.Dropout(0.5, 1, sequence_ids=[1, 0]))
    assert np.array_equal(swapped[::-1], one)


def test_parts_merge_to_the_whole():
    q, k, v = arrays(12, keys=9)
    sinks = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
    state = qkv.attention_with(q, k[:, :, :4], v[:, :, :4], lse=True)
    part = qkv.attention_with(q, k[:, :, 4:], v[:, :, 4:], lse=True)
    qkv.attention_merge(state.context, state.lse, part.context, part.lse)
    close(state.context, attend(q, k, v)[0])
    qkv.attention_merge_sinks(state.context, state.lse, sinks)
    context, _, lse = attend(q, k, v, sinks=sinks)
    close(state.context, context)
    close(state.lse, lse)


def test_gradients_are_central_differences():
    q, k, v = arrays(13, "float64", queries=3, keys=4, dim=3, value_dim=2)
    bias = np.random.default_rng(1).standard_normal((1, 4, 3, 4))
    sinks = np.array([0.3, -0.2, 0.1, 0.7])
    slopes = np.array([0.3, 0.2, 0.1, 0.4])
    d_out = np.random.default_rng(2).standard_normal((2, 4, 3, 2))

    def options():
        return {"mask": qkv.Mask.bias(bias) & qkv.Mask.alibi(slopes) & qkv.Mask.causal(1), "sinks": sinks,
                "softcap": 3.0}

    forward = qkv.attention_with(q, k, v, lse=True, **options())
    given = qkv.attention_backward(d_out, q, k, v, forward.context, forward.lse, dbias=True, dsinks=True, dalibi=True,
                                   **options())
    for array, gradient in zip((q, k, v, bias, sinks, slopes), given):
        assert gradient.shape == array.shape
        for at in list(np.ndindex(array.shape))[::5]:
            before, step = array[at], 1e-5
            sums = []
            for sign in (1, -1):
                array[at] = before + sign * step
                sums.append((d_out * qkv.attention(q, k, v, **options())).sum())
            array[at] = before
            assert abs((sums[0] - sums[1]) / (2 * step) - gradient[at]) < 1e-8
    only = qkv.attention_backward(d_out, q, k, v, forward.context, forward.lse, dq=np.empty_like(q), dk=False, dv=None,
                                  **options())
    assert np.array_equal(only.dq, given.dq) and only[1:] == (None,) * 5


def test_results_do_not_depend_on_the_threads():
    q, k, v = arrays(14, queries=300, keys=300, dim=32, value_dim=32)
    results = [qkv.attention(q, k, v, runtime=qkv.Runtime(threads)) for threads in (1, 2, 5)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    before = qkv.get_threads()
    qkv.set_threads(3)
    assert qkv.get_threads() == 3 and np.array_equal(results[0], qkv.attention(q, k, v))
    qkv.set_threads(before)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 0, 3, 4)])
def test_nothing_in_nothing_out(shape):
    x = np.empty(shape, np.float32)
    assert qkv.attention(x, x, x).shape == shape
