"""What is timed: the shapes, by name and in groups, and how much useful work each is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention call. `work` is forward, backward (forward and backward together) or decode.

    mask: none, causal (bottom-right), window:N (causal over the last N keys), boolean, additive, or packed, where
    `lengths` are the sequences of one packed batch and `keys` is their sum.
    """

    name: str
    group: str
    work: str = "forward"
    batch: int = 1
    heads: int = 1
    kv_heads: int = 0  # 0: as many as heads
    queries: int = 1
    keys: int = 0  # 0: as many as queries
    head_dim: int = 64
    value_dim: int = 0  # 0: as head_dim
    dtype: str = "f32"
    mask: str = "none"
    lengths: tuple = ()

    def __post_init__(self):
        for name, default in (("kv_heads", self.heads), ("keys", self.queries), ("value_dim", self.head_dim)):
            object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def window(self):
        return int(self.mask.split(":")[1]) if self.mask.startswith("window:") else None

    @property
    def kept(self):
        """Scores that the mask leaves, per head and batch row."""
        if self.mask == "packed":
            return sum(length * (length + 1) // 2 for length in self.lengths)
        if self.mask != "causal" and self.window is None:
            return self.queries * self.keys
        first = self.keys - self.queries + 1  # keys of the first query
        counts = range(first, self.keys + 1)
        return sum(min(count, self.window or count) for count in counts)

    @property
    def flops(self):
        """Useful work: two products per kept score forward, five more backward (scores again, dP, dV, dQ, dK)."""
        pairs = self.batch * self.heads * self.kept
        forward = 2 * pairs * (self.head_dim + self.value_dim)
        backward = 2 * pairs * (3 * self.head_dim + 2 * self.value_dim)
        return forward + (backward if self.work == "backward" else 0)

    @property
    def key_value_bytes(self):
        width = 4 if self.dtype == "f32" else 2
        return self.batch * self.kv_heads * self.keys * (self.head_dim + self.value_dim) * width

    @property
    def shape(self):
        heads = f"{self.heads}" if self.kv_heads == self.heads else f"{self.heads}/{self.kv_heads}"
        dims = f"{self.head_dim}" if self.value_dim == self.head_dim else f"{self.head_dim}/{self.value_dim}"
        tokens = f"{self.queries}" if self.keys == self.queries else f"{self.queries}×{self.keys}"
        mask = "" if self.mask == "none" else f" {self.mask}"
        return f"B{self.batch} H{heads} T{tokens} D{dims}{mask}"


FIVE = {
    "short": dict(batch=8, heads=12, queries=128),
    "prompt": dict(heads=12, queries=1024, mask="causal"),
    "grouped": dict(heads=32, kv_heads=8, queries=2048, head_dim=128, mask="causal"),
    "long": dict(heads=4, queries=8192, mask="causal"),
    "encoder": dict(heads=8, queries=4096),
}
MIXED = (16, 48, 1024, 100, 2048, 333, 64, 512, 700, 251)


def _main():
    for dtype in ("f32", "bf16", "f16"):
        for name, shape in FIVE.items():
            yield Case(f"{name}-{dtype}", "main", dtype=dtype, **shape)
    for dtype in ("f32", "bf16"):
        for name, shape in FIVE.items():
            if name != "long":
                yield Case(f"{name}-{dtype}-backward", "main", "backward", dtype=dtype, **shape)
    yield Case("decode-small-f32", "main", "decode", heads=9, kv_heads=3, queries=1, keys=4096)
    for dtype in ("f32", "bf16", "f16"):
        yield Case(f"decode-large-{dtype}", "main", "decode", batch=8, heads=32, kv_heads=8, queries=1, keys=8192,
                   head_dim=128, dtype=dtype)
    yield Case("six-tokens-f32", "main", queries=6, head_dim=2)


def _wide():
    for tokens in (1, 16, 64, 256, 512, 2048, 16384, 32768):
        heads = 8 if tokens <= 2048 else 1
        yield Case(f"length-{tokens}", "wide", heads=heads, queries=tokens, mask="causal")
    for head_dim, value_dim in ((32, 32), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)):
        yield Case(f"dim-{head_dim}-{value_dim}", "wide", heads=8, queries=1024, head_dim=head_dim,
                   value_dim=value_dim, mask="causal")
    for batch, heads in ((1, 1), (2, 2), (4, 4), (8, 16)):
        yield Case(f"batch-heads-{batch * heads}", "wide", batch=batch, heads=heads, queries=512)
    for group in (1, 4, 8):
        yield Case(f"group-{group}", "wide", heads=8, kv_heads=8 // group, queries=1024, mask="causal")
    for window in (256, 1024):
        yield Case(f"window-{window}", "wide", heads=8, queries=4096, mask=f"window:{window}")
    for mask in ("boolean", "additive"):
        yield Case(f"mask-{mask}", "wide", heads=8, queries=1024, mask=mask)
    yield Case("packed", "wide", heads=8, queries=sum(MIXED), mask="packed", lengths=MIXED)
    yield Case("cross", "wide", heads=8, queries=100, keys=1500)


def all_cases():
    cases = [*_main(), *_wide()]
    for dtype in ("bf16", "f16"):
        cases += [dataclasses.replace(case, name=f"{case.name}-{dtype}", dtype=dtype) for case in _wide()]
    return cases


# One of each kind, small enough for five minutes with every contender.
QUICK = ("short-f32", "prompt-f32", "prompt-bf16", "prompt-f16", "encoder-f32", "prompt-f32-backward", "decode-small-f32",
         "decode-large-bf16", "six-tokens-f32", "window-256", "packed", "cross")
