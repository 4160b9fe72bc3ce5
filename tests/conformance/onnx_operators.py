"""ONNX's Attention (opset 23 to 25) and RotaryEmbedding by qkv: what each attribute and input is in qkv's words.

Written from the operators' documentation, https://onnx.ai/onnx/operators/.
"""

import numpy as np
import qkv
from onnx import TensorProto

SCORE_POINTS = ("scaled", "capped", "masked", "weights")  # qk_matmul_output_mode 0 to 3


def heads_apart(array, heads):
    """[B, H, T, D], of either layout that the operators take: [B, T, H·D] is seen as [B, H, T, D] without a copy."""
    if array.ndim == 4:
        return array
    batch, tokens, width = array.shape
    return array.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)


def mask_of(attributes, attn_mask, nonpad_kv_seqlen, keys, dtype):
    # A cache kept outside the operator ends each sequence's keys at its own place, and its last query stands at its
    # last key. Otherwise query i stands at key i, plus the keys of past_key (Offsets below).
    align = "top_left" if nonpad_kv_seqlen is None else "bottom_right"
    mask = qkv.Mask()
    if nonpad_kv_seqlen is not None:
        mask &= qkv.Mask.key_end(nonpad_kv_seqlen)
    if attributes.get("is_causal"):
        mask &= qkv.Mask.causal(align)
    left, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    mask &= qkv.Mask.window(left if left >= 0 else None, right if right >= 0 else None, align)
    if attn_mask is not None:
        # A mask that is too short hides the keys after it.
        boolean = attn_mask.dtype == bool
        missing = [(0, 0)] * (attn_mask.ndim - 1) + [(0, max(0, keys - attn_mask.shape[-1]))]
        attn_mask = np.pad(attn_mask, missing, constant_values=False if boolean else -np.inf)
        mask &= qkv.Mask.allowed(attn_mask) if boolean else qkv.Mask.bias(attn_mask.astype(dtype, copy=False))
    return mask


def attention(attributes, inputs, wanted):
    """The outputs named in `wanted`."""
    query = heads_apart(inputs["Q"], attributes.get("q_num_heads"))
    key, value = (heads_apart(inputs[name], attributes.get("kv_num_heads")) for name in ("K", "V"))
    storage = query.dtype
    past = 0
    if "past_key" in inputs:
        past = inputs["past_key"].shape[2]
        key = np.concatenate([inputs["past_key"], key], 2)
        value = np.concatenate([inputs["past_value"], value], 2)
    outputs = {"present_key": key, "present_value": value}
    # Softmax is float32 whatever the storage is, as softmax_precision has it at most, but for this one:
    compute = np.dtype(np.float64) if attributes.get("softmax_precision") == TensorProto.DOUBLE else storage
    query, key, value = (array.astype(compute, copy=False) for array in (query, key, value))
    # Written in the layout of the operator's output.
    batch, heads, tokens, _ = query.shape
    context = np.empty((batch, tokens, heads, value.shape[-1]), compute).transpose(0, 2, 1, 3)
    scores = np.empty((batch, heads, tokens, key.shape[2]), compute) if "qk_matmul_output" in wanted else None
    qkv.attention_with(
        query, key, value, out=context, scores=scores,
        scores_at=SCORE_POINTS[attributes.get("qk_matmul_output_mode", 0)], scale=attributes.get("scale"),
        softcap=attributes.get("softcap", 0.0), offsets=qkv.Offsets(query=past),
        mask=mask_of(attributes, inputs.get("attn_mask"), inputs.get("nonpad_kv_seqlen"), key.shape[2], compute))
    outputs["qk_matmul_output"] = scores
    outputs["Y"] = context
    if inputs["Q"].ndim == 3:
        outputs["Y"] = context.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)
    return {name: np.asarray(outputs[name]).astype(inputs["Q"].dtype) for name in wanted}


def rotary_embedding(attributes, inputs, wanted):
    x = heads_apart(inputs["X"], attributes.get("num_heads"))
    batch, _, tokens, head_dim = x.shape
    positions = inputs.get("position_ids")
    if positions is None:
        positions = np.arange(batch * tokens)  # the tables are [B, T, R/2]: a row for each token of each sequence
    cos, sin = (inputs[f"{name}_cache"].reshape(-1, inputs[f"{name}_cache"].shape[-1]) for name in ("cos", "sin"))
    rope = qkv.Rope.from_tables(cos, sin, head_dim, "interleaved" if attributes.get("interleaved") else "half_split")
    turned = rope.apply(x, positions=positions.reshape(-1))
    if inputs["X"].ndim == 3:
        turned = turned.transpose(0, 2, 1, 3).reshape(inputs["X"].shape)
    return {"Y": turned}


OPERATORS = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
