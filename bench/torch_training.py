"""The GPT of bench_training in torch, in its fastest form there: fused attention, LayerNorm and AdamW. It takes turns as
bench_training does, and its options are the same; `--way eager` or `--way compile`."""

import argparse
import json
import math
import pathlib
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional

# TrainOptions of qkv/models/trainer.hpp
LR, MIN_LR, WARMUP, STEPS, DECAY, CLIP = 1e-3, 1e-4, 100, 1_000_000, 0.1, 1.0


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.W_query = nn.Linear(width, width, bias=False)
        self.W_key = nn.Linear(width, width, bias=False)
        self.W_value = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape

        def split(y):
            return y.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        context = functional.scaled_dot_product_attention(
            split(self.W_query(x)), split(self.W_key(x)), split(self.W_value(x)), is_causal=True,
            dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(context.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.att = Attention(width, heads, dropout)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.drop(self.att(self.norm1(x)))
        return x + self.drop(self.ff(self.norm2(x)))


class Gpt(nn.Module):
    def __init__(self, vocabulary, context, width, heads, layers, dropout):
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout) for _ in range(layers)])
        self.final_norm = nn.LayerNorm(width)
        self.out_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids, targets):
        x = self.drop(self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1])))
        logits = self.out_head(self.final_norm(self.blocks(x)))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Training:
    def __init__(self, options):
        text = pathlib.Path(options.text).read_text(encoding="utf-8")
        characters = {character: index for index, character in enumerate(sorted(set(text)))}
        self.ids = torch.tensor([characters[character] for character in text])
        self.context, self.batch = options.context, options.batch
        self.training = len(self.ids) - max(len(self.ids) // 10, self.context + 1)
        torch.manual_seed(options.seed)
        self.model = Gpt(len(characters), options.context, options.dim, options.heads, options.layers, options.dropout)
        groups = [{"params": [p for p in self.model.parameters() if (p.dim() >= 2) == matrix],
                   "weight_decay": DECAY if matrix else 0.0} for matrix in (True, False)]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.loss = torch.compile(self.model) if options.way == "compile" else self.model
        self.done = 0

    def step(self):
        self.done += 1
        decayed = MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * (self.done - WARMUP) / (STEPS - WARMUP))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = LR * self.done / WARMUP if self.done <= WARMUP else decayed
        begins = torch.randint(self.training - self.context, (self.batch,))
        inputs = torch.stack([self.ids[begin:begin + self.context] for begin in begins])
        targets = torch.stack([self.ids[begin + 1:begin + 1 + self.context] for begin in begins])
        self.optimizer.zero_grad()
        loss = self.loss(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(found):
    print(json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--way", choices=["eager", "compile"], required=True)
    for name in ("context", "layers", "heads", "dim", "batch", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training = Training(options)
    say({"parameters": sum(parameter.numel() for parameter in training.model.parameters()), "peak_mib": peak_mib()})
    for line in sys.stdin:
        start = time.perf_counter()
        losses = [training.step() for _ in range(int(line))]
        say({"seconds": time.perf_counter() - start, "losses": losses, "peak_mib": peak_mib()})


if __name__ == "__main__":
    main()
