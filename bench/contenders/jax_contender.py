"""JAX on the CPU: jax.nn.dot_product_attention, compiled. Its threads are set before it is imported (bench.py)."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy
import torch

from inputs import allowed_rows

from . import Prepared, Unavailable


TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


def to_jax(x):
    """[B, H, T, D] → [B, T, H, D], as JAX has it."""
    turned = x.transpose(1, 2).contiguous()
    if turned.dtype == torch.bfloat16:
        return jnp.asarray(turned.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return jnp.asarray(turned.numpy())


class Jax:
    name = "jax"
    writes_scores = True
    version = jax.__version__

    def prepare(self, case, inputs, threads):  # noqa: ARG002
        if case.head_dim != case.value_dim:
            raise Unavailable("values of another width are refused")
        if case.batch * case.heads * case.queries * case.keys > 1 << 28:
            raise Unavailable("it writes all scores out, which do not fit")
        if case.mask == "packed":
            raise Unavailable("no packed batches on a CPU")
        options = {}
        if case.mask == "causal" and case.queries == case.keys:
            options["is_causal"] = True
        elif case.mask in ("boolean", "causal") or case.window is not None:
            mask = allowed_rows(case, inputs, torch.arange(case.queries)).numpy()
            options["mask"] = jnp.asarray(mask)[None, None]
        elif case.mask == "additive":
            options["bias"] = jnp.asarray(inputs.bias.float().numpy())[None, None].astype(TYPES[case.dtype])
        q, k, v = to_jax(inputs.q), to_jax(inputs.k), to_jax(inputs.v)
        held = {}

        def forward(q, k, v):
            return jax.nn.dot_product_attention(q, k, v, **options)

        if case.work != "backward":
            compiled = jax.jit(forward)

            def run():
                held["out"] = compiled(q, k, v).block_until_ready()
        else:
            d_out = to_jax(inputs.d_out)

            @jax.jit
            def both(q, k, v):
                out, back = jax.vjp(forward, q, k, v)
                return out, back(d_out)

            def run():
                held["out"], gradients = both(q, k, v)
                gradients[0].block_until_ready()

        return Prepared(run, lambda: torch.from_numpy(
            numpy.array(held["out"].astype(jnp.float32))).transpose(1, 2))


def contenders():
    return [Jax()]
