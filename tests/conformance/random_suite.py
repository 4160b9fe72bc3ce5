"""Random problems with their features crossed, against PyTorch's math path in float64."""

import math
from collections import Counter

import drop_in
import qkv
import torch
from attention_problems import answer, chance, make, pick
from error_rule import DTYPES, judge
from tally import Tally

# How a tensor may lie in memory, the last stride 1 or not.
ARRANGEMENTS = {
    "contiguous": lambda t: t,
    "tokens before heads": lambda t: t.transpose(-2, -3).contiguous().transpose(-2, -3) if t.dim() > 2 else t,
    "padded rows": lambda t: torch.cat([t, torch.full_like(t, math.nan)], -1)[..., : t.shape[-1]],
    "every second row": lambda t: torch.stack([t, torch.full_like(t, math.nan)], -2).flatten(-3, -2)[..., ::2, :],
    "columns first": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
}


def sdpa_problem(seed):
    """A random problem for drop_in: what scaled_dot_product_attention can express."""
    g = torch.Generator().manual_seed(seed)
    dtype = tuple(DTYPES)[pick(g, 0, 3)]

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(DTYPES[dtype]).double()

    gqa = chance(g, 0.4)
    kv_heads = pick(g, 1, 3)
    heads = kv_heads * pick(g, 2, 4) if gqa else kv_heads
    lead = ((), (heads,), (pick(g, 1, 3), heads), (pick(g, 1, 2), pick(g, 1, 2), heads))[pick(g, 1 if gqa else 0, 3)]
    key_lead = lead[:-1] + ((kv_heads,) if lead else ())
    if not gqa and lead and chance(g, 0.2):
        key_lead = (1,) * len(lead)  # one for all, broadcast
    queries, keys, head_dim, value_dim = pick(g, 1, 48), pick(g, 1, 48), pick(g, 1, 64), pick(g, 1, 64)
    if chance(g, 0.1):
        queries, keys = pick(g, 60, 150), pick(g, 60, 150)
    problem = {"seed": seed, "dtype": dtype, "q": normal(*lead, queries, head_dim),
               "k": normal(*key_lead, keys, head_dim), "v": normal(*key_lead, keys, value_dim),
               "d_out": normal(*lead, queries, value_dim), "options": {}, "features": []}
    options, features = problem["options"], problem["features"]
    features += [dtype, f"{len(lead) + 2}-D"] + ["grouped heads"] * gqa + ["Dv != D"] * (value_dim != head_dim)
    options["enable_gqa"] = gqa
    problem["scale"] = 1 / math.sqrt(head_dim)
    if chance(g, 0.3):
        problem["scale"] = options["scale"] = float(torch.randn(1, generator=g)) / math.sqrt(head_dim)
        features.append("scale")
    mask = ("none", "causal", "boolean", "float", "band", "key padding")[pick(g, 0, 5)]
    features.append(f"mask: {mask}")
    # A mask's sizes are the weights' or 1, and leading ones may be missing.
    sizes = [size if chance(g, 0.7) else 1 for size in (*lead, queries, keys)][pick(g, 0, len(lead) + 1):]
    if mask == "causal":
        options["is_causal"] = True
    elif mask == "boolean":
        problem["allowed"] = torch.rand(sizes, generator=g) < 0.7
    elif mask == "float":
        problem["bias"] = normal(*sizes).masked_fill(torch.rand(sizes, generator=g) < 0.2, -math.inf)
    elif mask == "band":
        distance = torch.arange(keys) - torch.arange(queries)[:, None] - pick(g, -2, max(0, keys - queries))
        problem["allowed"] = (distance <= pick(g, 0, 20)) & (distance >= -pick(g, 0, 20))
    elif mask == "key padding":
        ends = torch.randint(0, keys + 1, lead[:-1] + (1, 1, 1), generator=g)
        problem["allowed"] = torch.arange(keys) < (ends if lead else ends.flatten())
    if chance(g, 0.25):
        options["dropout_p"] = 0.1 * pick(g, 1, 8)
        features.append("dropout")
    how = tuple(ARRANGEMENTS)[pick(g, 0, len(ARRANGEMENTS) - 1)]
    problem["arrange"] = lambda tensor: ARRANGEMENTS[how](tensor) if tensor.dim() > 1 else tensor
    features.append(how)
    return problem


def sdpa_case(seed):
    problem = sdpa_problem(seed)
    return problem["features"], judge(problem, *drop_in.answers(problem))


def function_features(p, how):
    names = {"allowed": "mask: boolean", "bias": "mask: float", "sinks": "sinks", "keep": "dropout"}
    features = [p["dtype"], how] + [name for key, name in names.items() if p[key] is not None]
    features += ["mask: causal"] * (p["causal"] > 0) + ["mask: band"] * (max(p["left"], p["right"]) >= 0)
    features += ["softcap"] * (p["softcap"] > 0) + ["grouped heads"] * (p["heads"] > p["kv_heads"])
    return features + ["Dv != D"] * (p["head_dim"] != p["value_dim"])


def function_case(seed):
    """A problem of attention_problems, which has what SDPA cannot say too, through qkv.attention and its backward."""
    p = make(seed)
    how = tuple(ARRANGEMENTS)[seed % 4]  # the last stride is 1 here
    dtype = DTYPES[p["dtype"]]
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v, d_out = (ARRANGEMENTS[how](p[name].to(dtype)) for name in ("q", "k", "v", "d_out"))
    mask = qkv.Mask()
    if p["causal"]:
        mask &= qkv.Mask.causal("top_left" if p["causal"] == 1 else "bottom_right")
    mask &= qkv.Mask.window(*(p[side] if p[side] >= 0 else None for side in ("left", "right")), "top_left")
    if p["allowed"] is not None:
        mask &= qkv.Mask.allowed(p["allowed"].bool())
    if p["bias"] is not None:
        mask &= qkv.Mask.bias(p["bias"].to(sums))
    options = {"mask": mask, "scale": p["scale"], "softcap": p["softcap"], "runtime": qkv.Runtime(p["threads"])}
    if p["sinks"] is not None:
        options["sinks"] = p["sinks"].flatten().to(sums)
    if p["keep"] is not None:
        options["dropout"] = qkv.Dropout(p["p"], keep=p["keep"].bool())
    context, lse, _, _ = qkv.attention_with(q, k, v, lse=True, **options)
    wanted = {name: True for name in ("dbias", "dsinks") if p[name[1:]] is not None}
    gradients = qkv.attention_backward(d_out, q, k, v, context, lse, **wanted, **options)
    got = {"out": context, "lse": lse} | {n: g for n, g in gradients._asdict().items() if g is not None}
    got = {name: torch.from_dlpack(array).double() for name, array in got.items()}
    return function_features(p, how), judge(p, got, answer(p, torch.float64), answer(p, dtype))


def run(cases, first_seed):
    tallies = []
    rule = "error rule, float64 math path"
    for title, case in (("Random problems, qkv.torch", sdpa_case), ("Random problems, qkv.attention", function_case)):
        tally = Tally(f"{title}, forward and gradients", rule)
        counts, worst = Counter(), 0.0
        for seed in range(first_seed, first_seed + cases):
            features, verdict = case(seed)
            counts.update(features)
            if isinstance(verdict, str):
                tally.add(f"seed {seed} ({', '.join(features)})", verdict)
            else:
                worst = max(worst, verdict)
                tally.add(f"seed {seed}", None)
        tally.notes.append(f"Seeds {first_seed} to {first_seed + cases - 1}; the worst error is {worst:.2f} of what is allowed.")
        tally.notes.append("Problems with: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) + ".")
        tallies.append(tally)
    return tallies
