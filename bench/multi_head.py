"""Causal multi-head attention whole, projections included, beside eight ways to write it in torch: those that the
comparison of chapter 3 of "Build a Large Language Model (From Scratch)" lists, written anew."""

import json
import math
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from torch import nn
from torch.nn import functional

BATCH, TOKENS, WIDTH, HEADS, SEED = 8, 1024, 768, 12, 123
ROUNDS = 7


def scattered(shape, first):
    """As bench_multi_head makes them."""
    places = torch.arange(first, first + math.prod(shape), dtype=torch.int64) * 2654435761 % 2**32
    return (places.double() / 2.0**31 - 1.0).float().reshape(shape)


class Parameters(nn.Module):
    """The same numbers for all, in the order in which they are drawn from the seed."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)


class Way(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.register_buffer("masked", torch.triu(torch.ones(TOKENS, TOKENS), diagonal=1).bool())
        self.out = copy_of(given.out)
        self.take(given)

    def weights(self, q, k):
        scores = q @ k.transpose(-2, -1)
        scores = scores.masked_fill(self.masked[:scores.shape[-2], :scores.shape[-1]], -torch.inf)
        return torch.softmax(scores / q.shape[-1] ** 0.5, dim=-1)


def copy_of(linear):
    copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    copy.load_state_dict(linear.state_dict())
    return copy


def heads_first(y):
    return y.view(y.shape[0], y.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)


def joined(context):
    return context.transpose(1, 2).reshape(context.shape[0], -1, WIDTH)


class ListOfHeads(Way):
    name = "1 a list of single heads"

    def take(self, given):
        size = WIDTH // HEADS
        self.heads = nn.ModuleList()
        for head in range(HEADS):
            one = nn.ModuleDict()
            for name in ("query", "key", "value"):
                one[name] = nn.Linear(WIDTH, size, bias=False)
                one[name].weight.data.copy_(getattr(given, name).weight[head * size:(head + 1) * size])
            self.heads.append(one)

    def forward(self, x):
        return self.out(torch.cat([self.weights(one["query"](x), one["key"](x)) @ one["value"](x)
                                   for one in self.heads], dim=-1))


class Split(Way):
    name = "2 one projection each for q, k, v"

    def take(self, given):
        self.query, self.key, self.value = copy_of(given.query), copy_of(given.key), copy_of(given.value)

    def qkv(self, x):
        return heads_first(self.query(x)), heads_first(self.key(x)), heads_first(self.value(x))

    def forward(self, x):
        q, k, v = self.qkv(x)
        return self.out(joined(self.weights(q, k) @ v))


class Combined(Split):
    name = "3 one projection for all"

    def take(self, given):
        self.all = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.all.weight.data.copy_(torch.cat([given.query.weight, given.key.weight, given.value.weight]))

    def qkv(self, x):
        return (heads_first(part) for part in self.all(x).split(WIDTH, dim=-1))


class Einsum(Split):
    name = "4 einsum"

    def forward(self, x):
        q, k, v = (heads_first(torch.einsum("btc,oc->bto", x, one.weight)) for one in (self.query, self.key, self.value))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(self.masked, -torch.inf)
        weights = torch.softmax(scores / q.shape[-1] ** 0.5, dim=-1)
        return self.out(torch.einsum("bhqk,bhkd->bqhd", weights, v).reshape(x.shape))


class Fused(Combined):
    name = "5 scaled_dot_product_attention, is_causal"

    def forward(self, x):
        q, k, v = self.qkv(x)
        return self.out(joined(functional.scaled_dot_product_attention(q, k, v, is_causal=True)))


class FusedWithMask(Combined):
    name = "6 scaled_dot_product_attention, a mask"

    def forward(self, x):
        q, k, v = self.qkv(x)
        return self.out(joined(functional.scaled_dot_product_attention(q, k, v, attn_mask=~self.masked)))


class Module(Way):
    name = "7 nn.MultiheadAttention"
    needs_weights = True

    def take(self, given):
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, bias=True, batch_first=True)
        self.inner.in_proj_weight.data.copy_(torch.cat([given.query.weight, given.key.weight, given.value.weight]))
        self.inner.in_proj_bias.data.zero_()
        self.inner.out_proj.load_state_dict(given.out.state_dict())
        del self.out

    def forward(self, x):
        return self.inner(x, x, x, attn_mask=self.masked, need_weights=self.needs_weights,
                          is_causal=not self.needs_weights)[0]


class ModuleWithoutWeights(Module):
    name = "8 nn.MultiheadAttention, need_weights=False"
    needs_weights = False


WAYS = (ListOfHeads, Split, Combined, Einsum, Fused, FusedWithMask, Module, ModuleWithoutWeights)


class TorchWay:
    def __init__(self, way, given, x, d_y):
        self.module, self.x, self.d_y = way(given), x, d_y
        self.name = way.name

    def both(self):
        x = self.x.detach().requires_grad_()
        self.module.zero_grad(set_to_none=True)
        y = self.module.train()(x)
        y.backward(self.d_y)
        return y.detach(), x.grad

    def passes(self, what, count):
        start = time.perf_counter()
        for _ in range(count):
            if what == "both":
                self.both()
            else:
                with torch.no_grad():
                    # in training's form: nn.MultiheadAttention's other one takes no mask with is_causal
                    self.module.train()(self.x)
        return time.perf_counter() - start


class Own:
    name = "qkv"

    def __init__(self, program, threads):
        numbers = (BATCH, TOKENS, WIDTH, HEADS, SEED, threads)
        self.process = subprocess.Popen([program, *map(str, numbers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench: bench_multi_head ended with {self.process.wait()}")
        found = json.loads(answer)
        if "error" in found:
            raise SystemExit(f"bench: bench_multi_head: {found['error']}")
        return found

    def passes(self, what, count):
        return self.say(f"{what} {count}")["seconds"]

    def results(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "results")
            self.say(f"write {path}")
            flat = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
            return flat.reshape(2, BATCH, TOKENS, WIDTH)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def check(own, ways):
    y, d_x = own.results()
    for way in ways:
        for name, ours, theirs in zip(("output", "gradient of the input"), (y, d_x), way.both()):
            far = ((ours - theirs).abs().max() / theirs.abs().max()).item()
            if not far <= 1e-5:  # NaN neither
                raise SystemExit(f"bench: {way.name}: its {name} is {far:.2g} from qkv's; expected the same")


def compare(program, counts, seconds):
    """Lines of a Markdown table; medians over the rounds."""
    lines = ["| pass | threads | way | milliseconds | way / qkv |", "|---|---|---|---|---|"]
    torch.manual_seed(SEED)
    given = Parameters()
    shape = (BATCH, TOKENS, WIDTH)
    x, d_y = scattered(shape, 1), scattered(shape, 1000003)
    for threads in counts:
        torch.set_num_threads(threads)
        own = Own(program, threads)
        ways = [TorchWay(way, given, x, d_y) for way in WAYS]
        check(own, ways)
        for what, title in (("forward", "forward"), ("both", "forward + backward")):
            everyone = [own, *ways]
            turn = [one.passes(what, 1) for one in everyone]
            times = [[] for _ in everyone]
            for index in range(ROUNDS):
                for place in [*range(index % len(everyone), len(everyone)), *range(index % len(everyone))]:
                    count = max(1, round(seconds / ROUNDS / len(everyone) / turn[place]))
                    times[place].append(everyone[place].passes(what, count) / count)
            for one, found in zip(everyone, times):
                ratio = statistics.median(theirs / ours for theirs, ours in zip(found, times[0]))
                shown = "" if one is own else f"{ratio:.2f}"
                lines.append(f"| {title} | {threads} | {one.name} | {statistics.median(found) * 1e3:.0f} | {shown} |")
        own.end()
    return lines
