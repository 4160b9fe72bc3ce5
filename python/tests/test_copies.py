"""What objects look like, and what copy and pickle make of them."""

import copy
import pickle

import numpy as np
import pytest
import qkv

X = np.random.default_rng(0).standard_normal((1, 2, 6, 4)).astype(np.float32)
ALLOWED, SLOPES = np.tri(6, dtype=bool), np.array([0.5, 0.25], np.float32)
TABLE = np.ones((9, 2), np.float32)

MASKS = {
    "qkv.Mask()": qkv.Mask(),
    "qkv.Mask.causal(align='top_left')": qkv.Mask.causal("top_left"),
    "qkv.Mask.causal(align=1)": qkv.Mask.causal(np.int8(1)),
    "qkv.Mask.window(left=2, right=None, align='bottom_right')": qkv.Mask.window(2, None, "bottom_right"),
    "qkv.Mask.allowed(allowed=<bool (6, 6)>)": qkv.Mask.allowed(ALLOWED),
    "qkv.Mask.bias(bias=<float32 (6, 6)>) & qkv.Mask.causal(align=0)":
        qkv.Mask.bias(X[0, 0] @ X[0, 0].T) & qkv.Mask.causal(0),
    "qkv.Mask.alibi(slopes=<float32 (2,)>, align='bottom_right')": qkv.Mask.alibi(SLOPES),
    "qkv.Mask.key_begin(begin=(1,)) & qkv.Mask.key_end(end=(5,))": qkv.Mask.key_begin([1]) & qkv.Mask.key_end([5]),
    "qkv.Mask.packed(cumulative_queries=(0, 2, 6), cumulative_keys=(0, 4, 6))": qkv.Mask.packed([0, 2, 6], [0, 4, 6]),
    "qkv.Mask.blocks(query_block=3, key_block=3, starts=(0, 1, 3), key_blocks=(0, 0, 1), sequences=1, heads=1)":
        qkv.Mask.blocks(3, 3, [0, 1, 3], np.array([0, 0, 1])),
}
ROPES = {
    "qkv.Rope(head_dim=4, rotary_dim=2, base=100.0, pairing='interleaved', scaling={'kind': 'linear', 'factor': 2.0})":
        qkv.Rope(4, 2, 100.0, "interleaved", {"kind": "linear", "factor": 2.0}),
    "qkv.Rope.from_tables(cos=<float32 (9, 2)>, sin=<float32 (9, 2)>, head_dim=4, pairing='half_split')":
        qkv.Rope.from_tables(TABLE * 0.6, TABLE * 0.8, 4),
}
DROPOUTS = {
    "qkv.Dropout(p=0.5, seed=7, keep=None, sequence_ids=(3,))": qkv.Dropout(0.5, 7, None, [3]),
    "qkv.Dropout(p=0.5, seed=0, keep=<bool (6, 6)>, sequence_ids=None)": qkv.Dropout(0.5, keep=ALLOWED),
}
OTHERS = {
    "qkv.Runtime(threads=2)": qkv.Runtime(2),
    "qkv.Offsets(query=1, key=2, head=3, queries=9, keys=10)": qkv.Offsets(1, 2, 3, 9, 10),
}
WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def result(thing):
    if isinstance(thing, qkv.Mask):
        return qkv.attention(X, X, X, mask=thing)
    if isinstance(thing, qkv.Dropout):
        return qkv.attention(X, X, X, dropout=thing)
    return thing.apply(X) if isinstance(thing, qkv.Rope) else repr(thing)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("text", MASKS | ROPES | DROPOUTS | OTHERS)
def test_options_are_copied_whole(text, way):
    thing = (MASKS | ROPES | DROPOUTS | OTHERS)[text]
    assert repr(thing) == text
    other = way(thing)
    assert other is not thing and repr(other) == text
    assert np.array_equal(result(other), result(thing))


def test_a_deep_copy_has_arrays_of_its_own_and_a_copy_shares_them():
    bias = np.zeros((6, 6), np.float32)
    mask = qkv.Mask.bias(bias)
    shallow, deep = copy.copy(mask), copy.deepcopy(mask)
    bias[:] = -np.inf
    assert not result(shallow).any() and result(deep).all()


def test_long_lists_are_counted():
    assert repr(qkv.Mask.key_end(list(range(100)))) == "qkv.Mask.key_end(end=<100 numbers>)"


WORDS = np.random.default_rng(1).standard_normal((5, 3))
HEADS = {"context_length": 5, "dropout": 0.0, "num_heads": 2, "qkv_bias": True, "num_kv_heads": 1}
MODULES = {
    "qkv.nn.SimpleSelfAttention(normalise='sum')": qkv.nn.SimpleSelfAttention("sum"),
    "qkv.nn.SelfAttention(d_in=3, d_out=2, init='uniform', qkv_bias=False)": qkv.nn.SelfAttention(3, 2, "uniform"),
    "qkv.nn.CausalAttention(d_in=3, d_out=2, context_length=5, dropout=0.25, qkv_bias=True)":
        qkv.nn.CausalAttention(3, 2, 5, 0.25, True),
    "qkv.nn.MultiHeadAttentionWrapper(d_in=3, d_out=4, context_length=5, dropout=0.0, num_heads=2, qkv_bias=True, "
    "num_kv_heads=1)": qkv.nn.MultiHeadAttentionWrapper(3, 4, **HEADS),
    "qkv.nn.MultiHeadAttention(d_in=3, d_out=4, context_length=5, dropout=0.0, num_heads=2, qkv_bias=True, "
    "num_kv_heads=1)": qkv.nn.MultiHeadAttention(3, 4, **HEADS),
    "qkv.nn.CrossAttention(d_query=3, d_source=3, d_out=4, dropout=0.0, num_heads=2, qkv_bias=True, num_kv_heads=1)":
        qkv.nn.CrossAttention(3, 3, 4, 0.0, 2, True, 1),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("text", MODULES)
def test_modules_are_copied_with_their_parameters(text, way):
    layer = MODULES[text]
    layer.eval()
    inputs = (WORDS, WORDS) if isinstance(layer, qkv.nn.CrossAttention) else (WORDS,)
    other = way(layer)
    assert type(other) is type(layer) and repr(other) == repr(layer) == text and not other.training
    assert np.array_equal(other(*inputs), layer(*inputs))
    if state := other.state_dict():
        before = layer(*inputs)
        other.load_state_dict({n: value if n.endswith("mask") else value * 2 for n, value in state.items()})
        assert np.array_equal(layer(*inputs), before) and not np.array_equal(other(*inputs), before)
    layer.train()
    assert way(layer).training


def test_a_generators_copy_goes_on_from_the_same_place():
    generator = qkv.Generator(5)
    generator.randn(3)
    for way in (copy.copy, copy.deepcopy):
        other = way(generator)
        assert repr(other) == "<qkv.Generator of seed 5>"
        assert np.array_equal(other.randn(20), copy.copy(generator).randn(20))
    other.random()
    assert other.random() != generator.random()


def test_what_has_no_copy_says_why():
    cache = qkv.KvCache.paged(2, 8, 4, value_dim=4, dtype="bfloat16")
    cache.add()
    layer = qkv.nn.SelfAttention(3, 2)
    for thing, message in [(cache, r"^a qkv.KvCache cannot be copied or pickled; fork\(sequence\)"),
                           (qkv.nn.AdamW(layer), "^a qkv.nn.AdamW cannot"), (qkv.nn.Sgd(layer), "^a qkv.nn.Sgd cannot")]:
        for way in WAYS.values():
            with pytest.raises(TypeError, match=message):
                way(thing)
    with pytest.raises(TypeError, match="^a qkv.Generator cannot be pickled"):
        pickle.dumps(qkv.Generator(1))


def test_caches_say_what_they_hold():
    cache = qkv.KvCache.paged(2, 8, 4, value_dim=4, dtype="bfloat16")
    sequence = cache.add()
    token = np.zeros((1, 2, 1, 8), np.float32)
    cache.append(token, token[..., :4], sequence)
    assert repr(cache) == ("<qkv.KvCache paged: 2 heads of 8 and 4, bfloat16, 1 sequences, 3 of 4 blocks of 64 tokens "
                           "free>")
    assert repr(qkv.KvCache.contiguous(1, 4, 32)).startswith("<qkv.KvCache contiguous: 1 heads of 4, float32, 0 seq")
    assert repr(qkv.KvCache.windowed(1, 4, 16)).startswith("<qkv.KvCache windowed 16: 1 heads of 4, float32, 0 seq")
