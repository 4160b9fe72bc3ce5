"""Caches, decoding and rotary embedding from Python."""

import concurrent.futures

import numpy as np
import pytest
import qkv
from formula import attend, triangle

TOKENS, HEADS, KV_HEADS, DIM = 40, 4, 2, 8


def tokens(seed, heads, count=TOKENS):
    return np.random.default_rng(seed).standard_normal((1, heads, count, DIM)).astype(np.float32)


def caches(**options):
    return {"contiguous": qkv.KvCache.contiguous(KV_HEADS, DIM, TOKENS, sequences=3, **options),
            "windowed": qkv.KvCache.windowed(KV_HEADS, DIM, window=TOKENS, max_append=TOKENS, sequences=3, block_tokens=16,
                                             **options),
            "paged": qkv.KvCache.paged(KV_HEADS, DIM, blocks=9, block_tokens=16, **options)}


@pytest.mark.parametrize("kind", ["contiguous", "windowed", "paged"])
def test_a_decoded_sequence_is_full_attention(kind):
    cache = caches()[kind]
    q, k, v = tokens(1, HEADS), tokens(2, KV_HEADS), tokens(3, KV_HEADS)
    sequence = cache.add()
    steps = []
    for at in range(TOKENS):
        cache.append(k[:, :, at:at + 1], v[:, :, at:at + 1], sequence)
        steps.append(cache.attention(q[:, :, at:at + 1], [sequence]))
    decoded = np.concatenate(steps, axis=2)
    expected = attend(q, k, v, allowed=triangle(TOKENS, TOKENS))
    np.testing.assert_allclose(decoded, expected[0], rtol=2e-6, atol=2e-6)
    lse = np.empty((1, HEADS, TOKENS), np.float32)
    whole = cache.attention(q, sequence, mask=qkv.Mask.causal("top_left"), lse=lse)
    assert np.array_equal(whole, decoded)
    np.testing.assert_allclose(lse, expected[2], rtol=2e-6)
    assert cache.size(sequence) == TOKENS and cache.first(sequence) == 0


def test_packed_sequences_of_different_lengths():
    cache = caches()["paged"]
    one, other = cache.add(), cache.add()
    k, v, q = tokens(4, KV_HEADS, 12), tokens(5, KV_HEADS, 12), tokens(6, HEADS, 3)
    cache.append(k, v, (one, other), cumulative_tokens=[0, 5, 12])
    out = cache.attention(q, np.array([one, other]), cumulative_tokens=[0, 1, 3])
    np.testing.assert_allclose(out[:, :, :1], attend(q[:, :, :1], k[:, :, :5], v[:, :, :5])[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(out[:, :, 1:], attend(q[:, :, 1:], k[:, :, 5:], v[:, :, 5:])[0], rtol=2e-6, atol=2e-6)
    assert cache.next_positions(q, [one, other], [0, 1, 3]) == [5, 7, 8]


def test_forks_share_blocks_until_they_write():
    cache = caches()["paged"]
    k, v, q = tokens(7, KV_HEADS, 20), tokens(8, KV_HEADS, 20), tokens(9, HEADS, 1)
    first = cache.add()
    cache.append(k, v, first)
    before = cache.attention(q, first)
    second = cache.fork(first)
    assert cache.shared_blocks == 2 and cache.block_table(first) == cache.block_table(second)
    cache.append(k[:, :, :1], v[:, :, :1], second)
    assert cache.shared_blocks == 1 and np.array_equal(cache.attention(q, first), before)
    third = cache.fork(first, tokens=16)
    assert cache.size(third) == 16
    for sequence in (first, second, third):
        cache.remove(sequence)
    assert cache.free_blocks == cache.blocks == 9 and cache.sequences == 0
    with pytest.raises(ValueError, match=str(first)):
        cache.size(first)


def test_refusals_leave_the_cache_as_it_was():
    cache = qkv.KvCache.paged(KV_HEADS, DIM, blocks=1, block_tokens=16, dtype="float16")
    sequence = cache.add()
    k = tokens(1, KV_HEADS, 16)
    cache.append(k, k, sequence)
    for call, exception, message in [
            (lambda: cache.append(k[:, :, :1], k[:, :, :1], sequence), MemoryError, "block"),
            (lambda: cache.append(k[:, :1], k[:, :1], sequence), ValueError, "^k has shape"),
            (lambda: cache.append(k[0], k, sequence), ValueError, r"^k has shape \(2, 16, 8\); expected \[B, H, T, D\]"),
            (lambda: cache.append(k, k, sequence, rope=3), TypeError, "^rope is a int; expected a qkv.Rope"),
            (lambda: cache.append(k, k, "a"), TypeError, "^sequences is a str"),
            (lambda: cache.append(k, k, 77), ValueError, "77"),
            (lambda: cache.attention(k, sequence, cumulative_tokens=[0, 3]), ValueError, "cumulative"),
            (lambda: cache.truncate(sequence, 17), ValueError, "17"),
            (lambda: qkv.KvCache.paged(1, 4, 1, block_tokens=24), ValueError, "24"),
            (lambda: qkv.KvCache.contiguous(1, 4, 8, dtype="int8"), ValueError, "^dtype is 'int8'")]:
        with pytest.raises(exception, match=message):
            call()
        assert cache.size(sequence) == 16 and cache.free_blocks == 0
    cache.truncate(sequence, 3)
    assert cache.size(sequence) == 3
    cache.reset(sequence)
    assert cache.size(sequence) == 0 and cache.free_blocks == 1


def test_a_ring_takes_a_longer_append_and_refuses_queries_that_look_past_it():
    window, longer = 16, 100
    k, v, q = tokens(1, KV_HEADS, longer), tokens(2, KV_HEADS, longer), tokens(3, HEADS, longer)
    ring = qkv.KvCache.windowed(KV_HEADS, DIM, window=window, max_append=8, block_tokens=16)
    sequence = ring.add()
    ring.append(k, v, sequence)  # a whole prompt, of which only the end is asked about
    last = slice(longer - 8, longer)
    mask = qkv.Mask.causal("bottom_right") & qkv.Mask.window(window - 1, 0, "bottom_right")
    expected = qkv.attention(q[:, :, last], k, v, mask=mask)
    np.testing.assert_allclose(ring.attention(q[:, :, last], sequence, mask=qkv.Mask.causal("bottom_right")), expected,
                               rtol=2e-6, atol=2e-6)
    with pytest.raises(ValueError, match="the ring holds them from .* expected at most max_append queries"):
        ring.attention(q, sequence)


def test_threads_attend_while_others_append():
    cache = qkv.KvCache.paged(KV_HEADS, DIM, blocks=128, block_tokens=16)
    fixed = cache.add()
    k, q = tokens(1, KV_HEADS, 200), tokens(2, HEADS, 8)
    cache.append(k, k, fixed)
    expected = cache.attention(q, fixed)

    def work(number):
        if number % 2:
            mine = cache.add()
            cache.append(k, k, mine)
            cache.remove(mine)
            return True
        return np.array_equal(cache.attention(q, fixed), expected)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(60)))


def turned(x, start=0, base=10000.0, pairs="half_split"):
    """The definition, with complex numbers in float64."""
    half = x.shape[-1] // 2
    a, b = (x[..., :half], x[..., half:]) if pairs == "half_split" else (x[..., ::2], x[..., 1::2])
    angles = (start + np.arange(x.shape[-2]))[:, None] * base ** (-np.arange(half) / half)
    z = (a.astype(np.float64) + 1j * b) * np.exp(1j * angles)
    if pairs == "half_split":
        return np.concatenate([z.real, z.imag], axis=-1)
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


@pytest.mark.parametrize("pairs", ["half_split", "interleaved"])
def test_rope(pairs):
    x = tokens(1, HEADS)
    rope = qkv.Rope(DIM, base=500.0, pairing=pairs)
    out = rope.apply(x, start=7)
    np.testing.assert_allclose(out, turned(x, 7, 500.0, pairs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rope.apply_backward(out, start=7), x, rtol=1e-5, atol=1e-6)
    assert np.array_equal(rope.apply(x, positions=np.arange(7, 7 + TOKENS)), out)
    assert np.array_equal(rope.apply(x[0, 0], start=7), out[0, 0])
    angles = np.arange(60)[:, None] * np.array(rope.frequencies())
    table = qkv.Rope.from_tables(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), DIM, pairs)
    np.testing.assert_allclose(table.apply(x, start=7), out, rtol=1e-5, atol=1e-6)
    again = x.copy()
    assert rope.apply(again, start=7, out=again) is again and np.array_equal(again, out)


def test_rope_on_append_turns_keys_at_their_positions():
    rope = qkv.Rope(DIM)
    k, q = tokens(1, KV_HEADS), tokens(2, HEADS, 1)
    one, other = caches()["contiguous"], caches()["paged"]
    mine, theirs = one.add(), other.add()
    for part in (slice(0, 15), slice(15, TOKENS)):
        one.append(k[:, :, part], k[:, :, part], mine, rope=rope)
    other.append(rope.apply(k), k, theirs)
    assert np.array_equal(one.attention(q, mine), other.attention(q, theirs))


def test_rope_scalings():
    plain = np.array(qkv.Rope(DIM).frequencies())
    linear = qkv.Rope(DIM, scaling={"kind": "linear", "factor": 4.0})
    np.testing.assert_allclose(np.array(linear.frequencies()) * 4, plain)
    yarn = qkv.Rope(DIM, scaling={"kind": "yarn", "factor": 4.0, "original_context": 64, "truncate": False})
    assert yarn.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    for scaling in ({"kind": "ntk", "factor": 2.0}, {"kind": "llama3", "factor": 8.0, "original_context": 64},
                    {"kind": "dynamic_ntk", "factor": 2.0, "original_context": 8},
                    {"kind": "yarn", "factor": 2.0, "original_context": 8, "attention_factor": 1.5, "beta_fast": 16}):
        assert not np.allclose(qkv.Rope(DIM, scaling=scaling).frequencies(1000), plain)
    for scaling, exception, message in [
            ({"kind": "other"}, ValueError, "'other'; expected 'linear'"), (4.0, TypeError, "^scaling is a float"),
            ({"kind": "linear", "beta_fast": 2.0}, ValueError, "'beta_fast', which 'linear' does not know"),
            ({"kind": "linear", "factor": "x"}, TypeError, r"^scaling\['factor'\] is a str; expected a number"),
            ({"kind": "linear", "factor": 0.5}, ValueError, "factor")]:
        with pytest.raises(exception, match=message):
            qkv.Rope(DIM, scaling=scaling)
    with pytest.raises(ValueError, match="^pairing is 'odd'"):
        qkv.Rope(DIM, pairing="odd")
    with pytest.raises(ValueError, match="rotary_dim"):
        qkv.Rope(DIM, rotary_dim=3)
