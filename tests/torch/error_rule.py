"""The error rule of docs/numerics.md, for what PyTorch answers.

Infinities in the same places, and error <= 2 x that of PyTorch's plain formula in the same precision, plus a floor: two
roundings of the largest value for out and lse; for gradients four roundings of the largest product of their factors,
because they are differences of larger numbers. For float64, 1e-13 takes the rounding's place. A weight is the exp of a
difference and as uncertain as the rounding of score and lse makes it: that counts too.
"""
import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
GRADIENTS = ("dq", "dk", "dv", "dbias", "dsinks")


def largest_score(problem):
    """The largest |score| before bias and masks."""
    q, k = problem["q"], problem["k"]
    if k.dim() > 2 and k.shape[-3] not in (1, q.shape[-3]):
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    largest = float((q @ k.transpose(-1, -2) * problem["scale"]).abs().max())
    return min(largest, problem.get("softcap") or largest)


def floor_of(name, problem, expected):
    epsilon = torch.finfo(DTYPES[problem["dtype"]]).eps / 2
    if problem["dtype"] == "f64":
        epsilon = 1e-13  # the reference is in float64 itself and no more exact than what it judges
    compute = torch.finfo(torch.float64 if problem["dtype"] == "f64" else torch.float32).eps / 2
    epsilon += 2 * compute * largest_score(problem)  # of the score and of the lse
    finite = expected[torch.isfinite(expected)].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    if name not in GRADIENTS:
        return 2 * epsilon * max(largest, 1.0)
    products = float((problem["d_out"].norm(dim=-1).max() * problem["v"].norm(dim=-1).max()))
    factor = max(1.0, abs(problem["scale"]) * float(max(problem["q"].abs().max(), problem["k"].abs().max())))
    return 4 * epsilon * max(largest, products * factor)


def judge(problem, got, exact, plain):
    """The worst error as a part of what is allowed, or a text saying what breaks the rule.

    problem: dtype (a key of DTYPES), scale, perhaps softcap, and the float64 tensors q, k, v and
    d_out. got, exact, plain: float64
    tensors by name; all that `exact` has must be there.
    """
    worst = 0.0
    for name, expected in exact.items():
        value, honest = got[name].reshape(expected.shape), plain[name].reshape(expected.shape)
        finite = torch.isfinite(expected)
        if not torch.equal(value[~finite], expected[~finite]):
            return f"{name}: infinities or NaN in other places"
        error = float((value - expected)[finite].abs().max()) if finite.any() else 0.0
        honest = float((honest - expected)[finite].abs().max()) if finite.any() else 0.0
        allowed = 2 * honest + floor_of(name, problem, expected)
        worst = max(worst, error / allowed if allowed else float(error > 0))
        if not error <= allowed:
            return f"{name}: error {error:.3g}, plain {honest:.3g}, allowed {allowed:.3g}"
    return worst
