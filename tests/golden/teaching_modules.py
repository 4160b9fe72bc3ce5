"""The attention modules that PyTorch is taught with: parameters are drawn in the order they are written here.

Every module leaves `weights` (after the softmax, per head, before dropout) and `dropped_weights` behind.
"""

import math

import torch
from torch import nn


class Attention(nn.Module):
    """What all of them share: scaled scores, the mask, the softmax, dropout, the sum of values."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def attend(self, query, key, value, hidden=None):
        scores = query @ key.transpose(-2, -1)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        self.weights = torch.softmax(scores / math.sqrt(query.shape[-1]), dim=-1)
        self.dropped_weights = self.dropout(self.weights)
        return self.dropped_weights @ value


class SelfAttentionMatrices(Attention):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x):
        return self.attend(x @ self.W_query, x @ self.W_key, x @ self.W_value)


class SelfAttentionLinear(Attention):
    def __init__(self, d_in, d_out, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x):
        return self.attend(self.W_query(x), self.W_key(x), self.W_value(x))


def future(length):
    """True where the key comes after the query."""
    return torch.triu(torch.ones(length, length), diagonal=1)


class CausalAttention(Attention):
    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__(dropout)
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.register_buffer("mask", future(context_length))

    def forward(self, x):
        tokens = x.shape[-2]
        hidden = self.mask[:tokens, :tokens].bool()
        return self.attend(self.W_query(x), self.W_key(x), self.W_value(x), hidden)


class MultiHeadAttentionWrapper(nn.Module):
    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)
        )

    def forward(self, x):
        output = torch.cat([head(x) for head in self.heads], dim=-1)
        self.weights = torch.stack([head.weights for head in self.heads], dim=-3)
        self.dropped_weights = torch.stack([head.dropped_weights for head in self.heads], dim=-3)
        return output


class ProjectedHeads(Attention):
    """One projection each for query, key and value, split into heads that are joined again by out_proj."""

    def __init__(self, d_query, d_source, d_out, dropout, num_heads, qkv_bias):
        super().__init__(dropout)
        self.num_heads = num_heads
        self.W_query = nn.Linear(d_query, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_source, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_source, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)

    def split(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def project_and_attend(self, query, source, hidden):
        heads = (self.split(x) for x in (self.W_query(query), self.W_key(source), self.W_value(source)))
        return self.out_proj(self.attend(*heads, hidden).transpose(-3, -2).flatten(-2))


class MultiHeadAttention(ProjectedHeads):
    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__(d_in, d_in, d_out, dropout, num_heads, qkv_bias)
        self.register_buffer("mask", future(context_length))

    def forward(self, x):
        tokens = x.shape[-2]
        return self.project_and_attend(x, x, self.mask[:tokens, :tokens].bool())


class CrossAttention(ProjectedHeads):
    def __init__(self, d_query, d_source, d_out, dropout, num_heads, qkv_bias=False):
        super().__init__(d_query, d_source, d_out, dropout, num_heads, qkv_bias)

    def forward(self, query, source, key_padding_mask=None):
        """key_padding_mask [batch, source tokens]: True for keys that nobody may attend to."""
        hidden = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
        return self.project_and_attend(query, source, hidden)


class TorchMultiHead(nn.Module):
    """torch.nn.MultiheadAttention with the same face: causal self-attention, or cross-attention without a mask."""

    def __init__(self, embed_dim, num_heads, causal, kdim=None, bias=True, dropout=0.0):
        super().__init__()
        self.causal = causal
        self.attention = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=dropout, bias=bias, kdim=kdim, vdim=kdim, batch_first=True
        )
        for name, parameter in self.attention.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)  # PyTorch starts them at zero, which would hide one that is not added

    def forward(self, query, source=None, key_padding_mask=None):
        source = query if source is None else source
        hidden = future(query.shape[1]).bool() if self.causal else None
        output, self.weights = self.attention(
            query, source, source, key_padding_mask=key_padding_mask, attn_mask=hidden, average_attn_weights=False
        )
        self.dropped_weights = self.weights  # PyTorch gives these: read them only where dropout is 0
        return output
