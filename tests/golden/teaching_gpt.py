"""The GPT that PyTorch is taught with: pre-norm blocks, parameters drawn in the order they are written here."""

import torch
from teaching_modules import MultiHeadAttention
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, emb_dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.scale, self.shift, eps=1e-5)


class FeedForward(nn.Module):
    def __init__(self, emb_dim, gelu):
        super().__init__()
        form = {"tanh": "tanh", "erf": "none"}[gelu]
        self.layers = nn.Sequential(
            nn.Linear(emb_dim, 4 * emb_dim), nn.GELU(approximate=form), nn.Linear(4 * emb_dim, emb_dim)
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    def __init__(self, emb_dim, context_length, num_heads, dropout, qkv_bias, gelu):
        super().__init__()
        self.att = MultiHeadAttention(emb_dim, emb_dim, context_length, dropout, num_heads, qkv_bias)
        self.ff = FeedForward(emb_dim, gelu)
        self.norm1 = LayerNorm(emb_dim)
        self.norm2 = LayerNorm(emb_dim)
        self.drop_shortcut = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class Gpt(nn.Module):
    def __init__(self, vocab_size, context_length, emb_dim, num_heads, num_layers, dropout=0.0, qkv_bias=False,
                 tie_weights=False, gelu="tanh"):
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, emb_dim)
        self.pos_emb = nn.Embedding(context_length, emb_dim)
        self.drop_emb = nn.Dropout(dropout)
        self.trf_blocks = nn.Sequential(
            *(TransformerBlock(emb_dim, context_length, num_heads, dropout, qkv_bias, gelu) for _ in range(num_layers))
        )
        self.final_norm = LayerNorm(emb_dim)
        self.out_head = nn.Linear(emb_dim, vocab_size, bias=False)
        if tie_weights:
            self.out_head.weight = self.tok_emb.weight

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(self.drop_emb(x))))
