"""The modules, the generator and the files: the numbers of the PyTorch classes, whose goldens the C++ tests hold."""

import numpy as np
import pytest
import qkv

WORDS = np.array([[.43, .15, .89], [.55, .87, .66], [.57, .85, .64], [.22, .58, .33], [.77, .25, .10], [.05, .80, .55]])


def numerical(function, array, step=1e-2):
    gradient = np.zeros_like(array)
    for at in np.ndindex(array.shape):
        before = array[at]
        array[at] = before + step
        above = function()
        array[at] = before - step
        gradient[at] = (above - function()) / (2 * step)
        array[at] = before
    return gradient


def test_simple_self_attention_has_the_numbers_of_the_teaching_text():
    trace = {}
    context = qkv.nn.SimpleSelfAttention()(WORDS, trace=trace)
    np.testing.assert_allclose(context[1], [0.4419, 0.6515, 0.5683], atol=5e-5)
    np.testing.assert_allclose(trace["weights"].sum(-1), 1, rtol=1e-6)


def test_multi_head_attention_has_the_numbers_of_the_teaching_text():
    # Two heads of width 1, seed 123, dropout 0, over two equal sentences.
    layer = qkv.nn.MultiHeadAttention(3, 2, 6, num_heads=2, generator=qkv.Generator(123))
    output = layer(np.stack([WORDS, WORDS]))
    assert output.shape == (2, 6, 2)
    np.testing.assert_allclose(output[0, 0], [0.3190, 0.4858], atol=5e-5)
    np.testing.assert_allclose(output[1], output[0])


@pytest.mark.parametrize("make", [
    lambda: qkv.nn.SelfAttention(3, 4), lambda: qkv.nn.SelfAttention(3, 4, init="uniform"),
    lambda: qkv.nn.CausalAttention(3, 4, 6), lambda: qkv.nn.MultiHeadAttentionWrapper(3, 2, 6, num_heads=2),
    lambda: qkv.nn.MultiHeadAttention(3, 4, 6, num_heads=4, num_kv_heads=2, qkv_bias=True)],
    ids=["self", "self uniform", "causal", "wrapper", "multi-head"])
def test_backward_is_the_numerical_gradient(make):
    layer, x = make(), WORDS.astype(np.float32).copy()
    d_output = np.random.default_rng(0).standard_normal(layer(x).shape).astype(np.float32)

    def value():
        return float((d_output.astype(np.float64) * layer(x)).sum())

    layer(x)
    np.testing.assert_allclose(layer.backward(d_output), numerical(value, x), atol=2e-3)
    assert set(layer.gradients()) == {name for name in layer.state_dict() if not name.endswith("mask")}
    layer.zero_gradients()
    assert layer.gradients() == {}
    layer.eval()
    assert not layer.training
    with pytest.raises(ValueError, match="forward"):
        layer.backward(d_output)


def test_cross_attention():
    layer = qkv.nn.CrossAttention(3, 2, 4, num_heads=2)
    queries, source = WORDS[:4], np.random.default_rng(1).standard_normal((5, 2))
    mask = np.array([True, True, True, False, False])
    output = layer(queries, source, mask)
    assert np.array_equal(output, layer(queries, source[:3])) and np.array_equal(output, layer(queries, source, list(mask.tolist())))
    layer(queries, source)
    d_queries, d_source = layer.backward(output)
    assert d_queries.shape == queries.shape and d_source.shape == source.shape
    with pytest.raises(TypeError, match="^source_mask has elements of type float64; expected bool"):
        layer(queries, source, mask.astype(float))
    with pytest.raises(TypeError, match="^source_mask holds a int"):
        layer(queries, source, [1, 0, 1, 0, 1])


def test_parameters_go_both_ways(tmp_path):
    one, other = (qkv.nn.MultiHeadAttention(3, 4, 6, num_heads=2, generator=qkv.Generator(s)) for s in (1, 2))
    assert not np.array_equal(one(WORDS), other(WORDS))
    qkv.write_safetensors(tmp_path / "layer.safetensors", one.state_dict(), {"made by": "a test"})
    state = qkv.read_safetensors(tmp_path / "layer.safetensors")
    assert state.keys() == one.state_dict().keys()
    other.load_state_dict(state)
    assert np.array_equal(one(WORDS), other(WORDS))
    with pytest.raises(ValueError, match="W_query.weight"):
        other.load_state_dict({name: value for name, value in state.items() if name != "W_query.weight"})
    with pytest.raises(TypeError, match="^W_key.weight is a str"):
        other.load_state_dict(state | {"W_key.weight": "no array"})
    with pytest.raises(TypeError, match="^state is a list"):
        other.load_state_dict([])
    assert np.array_equal(one(WORDS), other(WORDS))
    with pytest.raises(OSError, match="nowhere"):
        qkv.read_safetensors(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="broken"):
        qkv.read_safetensors(str(tmp_path / "broken.safetensors"))


def test_training_lowers_the_loss_and_keeps_its_module_alive():
    layer = qkv.nn.CausalAttention(3, 2, 6, generator=qkv.Generator(0))
    target = WORDS[:, :2]
    for optimizer in (qkv.nn.AdamW(layer, lr=0.02, weight_decay=0.0), qkv.nn.Sgd(layer, lr=0.1, momentum=0.5)):
        losses = []
        for _ in range(40):
            layer.zero_gradients()
            error = layer(WORDS) - target
            losses.append(float((error**2).mean()))
            layer.backward(2 * error / error.size)
            assert qkv.nn.clip_gradient_norm(layer, 10.0) > 0
            optimizer.step()
        assert losses[-1] < losses[0]
    optimizer.set_lr(0.5)
    del layer
    optimizer.step()


def test_dropout_in_training_draws_from_the_generator():
    layer = qkv.nn.CausalAttention(3, 2, 6, dropout=0.5, generator=qkv.Generator(1))
    draws = [layer(WORDS, qkv.Generator(seed)) for seed in (5, 5, 6)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    with pytest.raises(ValueError, match="Generator"):
        layer(WORDS)


def test_bad_modules_are_refused():
    for make, message in [(lambda: qkv.nn.MultiHeadAttention(3, 5, 6, num_heads=2), "d_out 5 does not divide by 2 heads"),
                          (lambda: qkv.nn.SelfAttention(0, 2), "d_in"),
                          (lambda: qkv.nn.SelfAttention(3, 2, init="zero"), "^init is 'zero'"),
                          (lambda: qkv.nn.SimpleSelfAttention("max"), "^normalise is 'max'"),
                          (lambda: qkv.nn.SelfAttention(3, 2)(np.zeros((2, 4))), "x")]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="^trace is a list"):
        qkv.nn.SelfAttention(3, 2)(WORDS, trace=[])
    with pytest.raises(TypeError, match="^x has elements of type bool"):
        qkv.nn.SelfAttention(3, 2)(WORDS > 0)


@pytest.mark.parametrize("call, message", [
    (lambda: qkv.nn.SelfAttention(3, 2)(np.zeros((2, 4))),
     r"^x has shape \(2, 4\); expected \[tokens, 3\] or \[batch, tokens, 3\]$"),
    (lambda: qkv.nn.SelfAttention(3, 2)(np.zeros(4)), r"^x has shape \(4,\); expected"),
    (lambda: backward_of(qkv.nn.CausalAttention(3, 2, 6), np.zeros((2, 3))),
     r"^d_output has shape \(2, 3\); expected \(6, 2\)$"),
    (lambda: qkv.nn.SimpleSelfAttention().backward(WORDS, WORDS[:2]),
     r"^d_context has shape \(2, 3\); expected \(6, 3\)$"),
    (lambda: qkv.nn.CausalAttention(3, 2, 6, 0.5)(WORDS),
     r"^dropout 0.5 in training needs a generator; give generator=qkv.Generator\(seed\), or call eval\(\)$"),
    (lambda: qkv.nn.SimpleSelfAttention().load_state_dict({"f32 of [2, 3]": np.zeros((2, 3))}),
     r"^tensor 'f32 of \[2, 3\]' of shape \(2, 3\) belongs to no parameter"),
    (lambda: qkv.nn.CrossAttention(3, 2, 4)(np.zeros((2, 2, 3)), np.zeros((2, 2))),
     r"^queries have shape \(2, 2, 3\) and source \(2, 2\); expected the same batch$"),
    (lambda: qkv.Generator(1).rand((-1,)), r"^shape \(-1,\) has a negative size$"),
    (lambda: qkv.Runtime(-1), "^threads is -1; expected 0 to 4096$"),
    (lambda: qkv.KvCache.paged(0, 4, 4), "^kv_heads is 0; expected"),
    (lambda: qkv.Rope(4).apply(np.zeros((2, 4), np.float32), start=-1), "^start is -1 for 2 tokens"),
    (lambda: qkv.Rope(4).apply(np.zeros((1, 4), np.float32), positions=[-1]), r"^positions\[0\] is -1"),
])
def test_messages_speak_python(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def backward_of(layer, d_output):
    layer(WORDS)
    return layer.backward(d_output)


def test_the_generator_draws_pytorchs_numbers():
    # torch.manual_seed(123): torch.rand(2, 2), torch.randn(2), then uniform_, normal_ and bernoulli_ into arrays.
    generator = qkv.Generator(123)
    np.testing.assert_array_equal(
        generator.rand((2, 2)),
        np.array([[0.29611194133758545, 0.516562283039093], [0.2516707181930542, 0.6885567903518677]], np.float32))
    assert generator.seed == 123
    one, other = qkv.Generator(9), qkv.Generator(9)
    filled = np.empty((3, 5), np.float32)
    one.uniform_(filled, 0, 1)
    np.testing.assert_array_equal(filled, other.rand((3, 5)))
    wide = np.empty(4, np.float64)
    one.normal_(wide)
    np.testing.assert_array_equal(wide, other.randn(4, dtype="float64"))
    assert one.random() == other.random() and one.random64() == other.random64()
    one.bernoulli_(filled, 1.0)
    assert (filled == 1).all()
    one.manual_seed(9)
    assert one.random() == qkv.Generator(9).random()


def test_bad_draws_are_refused():
    generator = qkv.Generator(1)
    for call, exception, message in [
            (lambda: generator.rand((-1,)), ValueError, "-1"), (lambda: generator.rand("ab"), TypeError, "^shape"),
            (lambda: generator.rand(3, dtype="int8"), ValueError, "^dtype is 'int8'"),
            (lambda: generator.uniform_(np.zeros((4, 4), np.float32)[:, ::2]), ValueError, "^values is not contiguous"),
            (lambda: generator.normal_(np.zeros(3, np.int64)), TypeError, "^values has"),
            (lambda: generator.bernoulli_(np.zeros(3), 2.0), ValueError, "2")]:
        with pytest.raises(exception, match=message):
            call()
