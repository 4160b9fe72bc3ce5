"""One problem of scaled_dot_product_attention, answered by qkv.torch and by PyTorch's math path.

A problem is a dict: seed, dtype (a key of error_rule.DTYPES), scale (a number), the float64 tensors q, k, v, d_out
whose values are exact in that type, the float64 tensor bias or the boolean allowed (or neither), and options: the other
arguments. arrange, where there is one, lays a tensor out in memory in another way.
"""

import qkv.torch
import torch
from error_rule import DTYPES
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def ours(*tensors, **options):
    return qkv.torch.scaled_dot_product_attention(*tensors, **options, exact_dropout=True)


def math_path(*tensors, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(*tensors, **options)


def results(function, problem, dtype, arrange=lambda tensor: tensor):
    """out, dq, dk, dv and dbias (with a bias), in float64."""
    leaves = {name: arrange(problem[name].to(dtype)).detach().requires_grad_()
              for name in ("q", "k", "v", "bias") if problem.get(name) is not None}
    options = dict(problem["options"])
    if "bias" in leaves:
        options["attn_mask"] = leaves["bias"]
    elif problem.get("allowed") is not None:
        options["attn_mask"] = problem["allowed"]
    torch.manual_seed(problem["seed"])
    out = function(leaves["q"], leaves["k"], leaves["v"], **options)
    gradients = torch.autograd.grad(out, leaves.values(), arrange(problem["d_out"].to(dtype)))
    return {"out": out.detach().double()} | {f"d{name}": g.double() for name, g in zip(leaves, gradients)}


def answers(problem):
    """(ours, exact, plain): PyTorch's math path in float64, and in the problem's own type."""
    dtype = DTYPES[problem["dtype"]]
    # Else PyTorch computes 16-bit problems in float32 and rounds once: not what "plain in the same precision" means.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    return (results(ours, problem, dtype, problem.get("arrange", lambda tensor: tensor)),
            results(math_path, problem, torch.float64), results(math_path, problem, dtype))
