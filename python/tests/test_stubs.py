"""The stubs against the extension: every name, and every call that they promise, by keyword and with its defaults."""

import ast
import pathlib

import numpy as np
import pytest
import qkv
from qkv import _core

TREE = ast.parse((pathlib.Path(qkv.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))


def functions_of(body):
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
ROWS, BIAS, SINKS = X[..., 0].copy(), np.zeros((3, 3), np.float32), np.zeros(2, np.float32)
STAGE = {"d_in": 4, "d_out": 4, "generator": qkv.Generator(1)}
HEADS = STAGE | {"context_length": 3, "dropout": 0.0, "num_heads": 2, "qkv_bias": True, "num_kv_heads": 0}


def causal():
    return qkv.nn.CausalAttention(4, 4, 3)


def after_forward(layer, *inputs):
    layer(*inputs)
    return layer


def options():
    return {"mask": qkv.Mask.causal(0) & qkv.Mask.bias(BIAS) & qkv.Mask.alibi(SINKS), "scale": 0.5, "softcap": 2.0,
            "sinks": SINKS, "dropout": qkv.Dropout(0.1), "offsets": qkv.Offsets(), "runtime": qkv.Runtime(1)}


# Where it is called, and valid arguments. A stub's function that is missing here fails, and so does an argument.
CALLS = {
    "attention": (_core, lambda: {"q": X, "k": X, "v": X, "out": np.empty_like(X)} | options()),
    "attention_with": (_core, lambda: {"q": X, "k": X, "v": X, "lse": True, "weights": True, "scores": True,
                                       "scores_at": "scaled", "lse_counts_sinks": False, "out": None} | options()),
    "attention_backward": (_core, lambda: {"d_out": X, "q": X, "k": X, "v": X, "out": X, "lse": ROWS, "dq": True,
                                           "dk": True, "dv": True, "dbias": True, "dsinks": True, "dalibi": True,
                                           "lse_counts_sinks": True} | options()),
    "attention_merge": (_core, lambda: {"out": X.copy(), "lse": ROWS.copy(), "part_out": X, "part_lse": ROWS}),
    "attention_merge_sinks": (_core, lambda: {"out": X.copy(), "lse": ROWS.copy(), "sinks": SINKS}),
    "torch_forward": (_core, lambda: {"query": X, "key": X, "value": X, "attn_mask": None, "keep": None,
                                      "out": np.empty_like(X), "lse": None, "dropout_p": 0.0, "seed": 0,
                                      "is_causal": False, "scale": None, "enable_gqa": False, "threads": 1}),
    "torch_backward": (_core, lambda: {"grad_output": X, "query": X, "key": X, "value": X, "attn_mask": None,
                                       "keep": None, "out": X, "lse": ROWS, "grad_query": X.copy(),
                                       "grad_key": X.copy(), "grad_value": X.copy(), "grad_attn_mask": None,
                                       "dropout_p": 0.0, "seed": 0, "is_causal": False, "scale": None, "threads": 1}),
    "set_threads": (_core, lambda: {"threads": 0}),
    "get_threads": (_core, dict),
    "clip_gradient_norm": (_core, lambda: {"module": causal(), "max_norm": 1.0}),
    "read_safetensors": (_core, lambda: {"path": "a.safetensors"}),
    "write_safetensors": (_core, lambda: {"path": "a.safetensors", "tensors": {"x": X}, "metadata": {"a": "b"}}),
    "Runtime.__init__": (_core, lambda: {"threads": 1}),
    "Mask.__init__": (_core, dict),
    "Mask.causal": (_core.Mask, lambda: {"align": "top_left"}),
    "Mask.window": (_core.Mask, lambda: {"left": 1, "right": None, "align": "top_left"}),
    "Mask.allowed": (_core.Mask, lambda: {"allowed": X > 0}),
    "Mask.bias": (_core.Mask, lambda: {"bias": X}),
    "Mask.alibi": (_core.Mask, lambda: {"slopes": SINKS, "align": "top_left"}),
    "Mask.key_begin": (_core.Mask, lambda: {"begin": [1]}),
    "Mask.key_end": (_core.Mask, lambda: {"end": [1]}),
    "Mask.packed": (_core.Mask, lambda: {"cumulative_queries": [0, 1], "cumulative_keys": [0, 1]}),
    "Mask.blocks": (_core.Mask, lambda: {"query_block": 1, "key_block": 1, "starts": [0, 1], "key_blocks": [0],
                                         "sequences": 1, "heads": 1}),
    "Mask.__and__": (qkv.Mask(), lambda: {"other": qkv.Mask()}),
    "Dropout.__init__": (_core, lambda: {"p": 0.5, "seed": 3, "keep": X > 0, "sequence_ids": [1]}),
    "Offsets.__init__": (_core, lambda: {"query": 1, "key": 1, "head": 1, "queries": 9, "keys": 9}),
    "Generator.__init__": (_core, lambda: {"seed": 1}),
    "Generator.manual_seed": (qkv.Generator(1), lambda: {"seed": 1}),
    "Generator.random": (qkv.Generator(1), dict),
    "Generator.random64": (qkv.Generator(1), dict),
    "Generator.rand": (qkv.Generator(1), lambda: {"shape": (2, 3), "dtype": "float64"}),
    "Generator.randn": (qkv.Generator(1), lambda: {"shape": 3, "dtype": "float32"}),
    "Generator.uniform_": (qkv.Generator(1), lambda: {"values": X.copy(), "low": 0.0, "high": 2.0}),
    "Generator.normal_": (qkv.Generator(1), lambda: {"values": X.copy(), "mean": 0.0, "std": 2.0}),
    "Generator.bernoulli_": (qkv.Generator(1), lambda: {"values": X.copy(), "probability": 0.2}),
    "Module.train": (causal(), lambda: {"on": True}),
    "Module.eval": (causal(), dict),
    "Module.state_dict": (causal(), dict),
    "Module.load_state_dict": (causal(), lambda: {"state": causal().state_dict()}),
    "Module.gradients": (causal(), dict),
    "Module.zero_gradients": (causal(), dict),
    "SimpleSelfAttention.__init__": (_core, lambda: {"normalise": "sum"}),
    "SimpleSelfAttention.backward": (qkv.nn.SimpleSelfAttention(), lambda: {"x": X, "d_context": X}),
    "SelfAttention.__init__": (_core, lambda: STAGE | {"init": "linear", "qkv_bias": True}),
    "CausalAttention.__init__": (_core, lambda: STAGE | {"context_length": 3, "dropout": 0.0, "qkv_bias": True}),
    "MultiHeadAttentionWrapper.__init__": (_core, lambda: HEADS | {"num_kv_heads": 0}),
    "MultiHeadAttention.__init__": (_core, lambda: HEADS),
    "CrossAttention.__init__": (_core, lambda: {"d_query": 4, "d_source": 4, "d_out": 4, "dropout": 0.0, "num_heads": 1,
                                                "qkv_bias": False, "num_kv_heads": 0, "generator": qkv.Generator(1)}),
    "CrossAttention.backward": (after_forward(qkv.nn.CrossAttention(4, 4, 4), X, X), lambda: {"d_output": X}),
    "Sgd.__init__": (_core, lambda: {"module": causal(), "lr": 0.1, "momentum": 0.1, "weight_decay": 0.1}),
    "AdamW.__init__": (_core, lambda: {"module": causal(), "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8,
                                       "weight_decay": 0.1}),
}
for _name in ("forward", "__call__"):
    CALLS[f"SimpleSelfAttention.{_name}"] = (qkv.nn.SimpleSelfAttention(), lambda: {"x": X, "trace": {}})
    CALLS[f"CrossAttention.{_name}"] = (
        qkv.nn.CrossAttention(4, 4, 4),
        lambda: {"queries": X, "source": X, "source_mask": 6 * [True], "generator": None, "trace": {}})
for _stage in (qkv.nn.SelfAttention(4, 4), causal(), qkv.nn.MultiHeadAttentionWrapper(4, 4, 3),
               qkv.nn.MultiHeadAttention(4, 4, 3)):
    _type = type(_stage).__name__
    for _name in ("forward", "__call__"):
        CALLS[f"{_type}.{_name}"] = (_stage, lambda: {"x": X, "generator": qkv.Generator(1), "trace": {}})
    CALLS[f"{_type}.backward"] = (after_forward(_stage, X), lambda: {"d_output": X})
for _type, _optimizer in (("Sgd", qkv.nn.Sgd(causal())), ("AdamW", qkv.nn.AdamW(causal()))):
    CALLS[f"{_type}.step"] = (_optimizer, dict)
    CALLS[f"{_type}.set_lr"] = (_optimizer, lambda: {"lr": 0.5})

TOKEN = np.zeros((1, 1, 2, 4), np.float32)


_cache = qkv.KvCache.paged(1, 4, 8)
_one = _cache.add()
_cache.append(TOKEN, TOKEN, _one)
_turn = {"x": X, "start": 0, "positions": None, "length": 0, "out": None, "runtime": qkv.Runtime(1)}
_kind = {"kv_heads": 1, "head_dim": 4, "value_dim": None, "dtype": "bfloat16"}
CALLS |= {
    "Rope.__init__": (_core, lambda: {"head_dim": 4, "rotary_dim": 2, "base": 100.0, "pairing": "half_split",
                                      "scaling": None}),
    "Rope.from_tables": (_core.Rope, lambda: {"cos": BIAS[:, :2], "sin": BIAS[:, :2], "head_dim": 4,
                                              "pairing": "interleaved"}),
    "Rope.apply": (qkv.Rope(4), lambda: dict(_turn)),
    "Rope.apply_backward": (qkv.Rope(4), lambda: dict(_turn)),
    "Rope.frequencies": (qkv.Rope(4), lambda: {"length": 0}),
    "KvCache.contiguous": (_core.KvCache, lambda: _kind | {"capacity": 8, "sequences": 1}),
    "KvCache.windowed": (_core.KvCache, lambda: _kind | {"window": 8, "max_append": 1, "sequences": 1,
                                                         "block_tokens": 16}),
    "KvCache.paged": (_core.KvCache, lambda: _kind | {"blocks": 8, "block_tokens": 16}),
    "KvCache.add": (_cache, dict),
    "KvCache.fork": (_cache, lambda: {"sequence": _one, "tokens": 1}),
    "KvCache.remove": (_cache, lambda: {"sequence": _cache.add()}),
    "KvCache.append": (_cache, lambda: {"k": TOKEN, "v": TOKEN, "sequences": _one, "cumulative_tokens": None,
                                        "rope": None}),
    "KvCache.truncate": (_cache, lambda: {"sequence": _one, "tokens": 1}),
    "KvCache.reset": (_cache, lambda: {"sequence": _cache.add()}),
    "KvCache.next_positions": (_cache, lambda: {"tokens": TOKEN, "sequences": _one, "cumulative_tokens": None}),
    "KvCache.size": (_cache, lambda: {"sequence": _one}),
    "KvCache.first": (_cache, lambda: {"sequence": _one}),
    "KvCache.block_table": (_cache, lambda: {"sequence": _one}),
    "KvCache.attention": (_cache, lambda: {"q": TOKEN[:, :, :1], "sequences": [_one], "cumulative_tokens": None,
                                                   "out": None, "lse": None, "mask": None, "scale": None,
                                                   "softcap": 0.0, "sinks": None, "offsets": None, "runtime": None}),
}

# Tested with arrays and with copies.
PROTOCOL = {"__len__", "__repr__", "__array__", "__dlpack__", "__dlpack_device__", "__buffer__", "__copy__",
            "__deepcopy__", "__reduce__"}


def promised():
    found = functions_of(TREE.body)
    for name, node in CLASSES.items():
        for method, function in functions_of(node.body).items():
            is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list)
            if method not in PROTOCOL and not is_property:
                found[f"{name}.{method}"] = function
    return found


def test_every_name_is_in_the_stubs():
    def public(thing):
        return {name for name in vars(thing) if not name.startswith("_")}

    assert public(_core) == set(functions_of(TREE.body)) | set(CLASSES) | {"version"}
    for name, node in CLASSES.items():
        assert public(getattr(_core, name)) == {n for n in functions_of(node.body) if not n.startswith("_")}, name


def target_of(name):
    place, make = CALLS[name]
    return getattr(place, name.split(".")[0] if name.endswith("__init__") else name.split(".")[-1]), make


@pytest.mark.parametrize("name", [n for n in promised() if not n.startswith("torch_") and n != "Mask.__and__"])
def test_every_wrong_argument_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target, make = target_of(name)
    called = name.replace(".__init__", "").split(".")[-1]
    for key, value in make().items():
        with pytest.raises(TypeError, match=f"^{key} is a object; expected "):
            target(**make() | {key: object()})
        if type(value) is int:
            with pytest.raises(TypeError, match=f"^{key} is a bool; expected "):
                target(**make() | {key: True})
            with pytest.raises(ValueError, match=f"^{key} is 1{30 * '0'}; expected "):
                target(**make() | {key: 10**30})
    arguments = promised()[name].args
    known = ", ".join(a.arg for a in [*arguments.args, *arguments.kwonlyargs] if a.arg != "self") or "none"
    with pytest.raises(TypeError, match=rf"^{called}\(\) has no argument 'nonsense'; expected {known}$"):
        target(**make(), nonsense=1)
    with pytest.raises(TypeError, match=rf"^{called}\(\) has 40 arguments without a name; expected at most"):
        target(*range(40))
    if needed := [a.arg for a in arguments.args if a.arg != "self"][: -len(arguments.defaults) or None]:
        with pytest.raises(TypeError, match=rf"^{called}\(\) lacks {needed[-1]}; expected "):
            target(**{key: value for key, value in make().items() if key != needed[-1]})
        with pytest.raises(TypeError, match=rf"^{called}\(\) got {needed[0]} twice"):
            target(make()[needed[0]], **make())


@pytest.mark.parametrize("name", promised())
def test_every_call_is_as_the_stubs_promise(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qkv.write_safetensors("a.safetensors", {"x": X})
    target, make = target_of(name)
    arguments = promised()[name].args
    given = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs] if a.arg != "self"]
    values = make()
    assert set(values) == set(given)
    target(**values)
    if arguments.kwonlyargs:
        needed = {a.arg for a in arguments.args}
    else:
        needed = set(given[: len(given) - len(arguments.defaults)])
    defaults = dict(zip(given[::-1], arguments.defaults[::-1])) | {
        a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)}
    required = {key: value for key, value in make().items() if key in needed}
    target(**required)
    if defaults.keys() - needed:
        target(**required, **{key: ast.literal_eval(value) for key, value in defaults.items() if key not in needed
                              and value is not None})
