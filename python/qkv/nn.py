"""The stages of attention as modules, with the numbers of the PyTorch teaching classes.

>>> import qkv
>>> words = qkv.Generator(123).rand((6, 3))
>>> attention = qkv.nn.MultiHeadAttention(
...     d_in=3, d_out=2, context_length=6, num_heads=2, generator=qkv.Generator(123))
>>> attention.eval()
>>> attention(words).shape
(6, 2)
>>> sorted(attention.state_dict())[:2]
['W_key.weight', 'W_query.weight']

`trace={}` receives every intermediate by name; backward and gradients work after a forward in training.
"""

from ._core import (
    AdamW,
    CausalAttention,
    CrossAttention,
    Module,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    Sgd,
    SimpleSelfAttention,
    clip_gradient_norm,
)

__all__ = [
    "AdamW",
    "CausalAttention",
    "CrossAttention",
    "Module",
    "MultiHeadAttention",
    "MultiHeadAttentionWrapper",
    "SelfAttention",
    "Sgd",
    "SimpleSelfAttention",
    "clip_gradient_norm",
]
