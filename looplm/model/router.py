"""Which experts a token uses, and with what weight."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config import schema
from looplm.model.init import Init
from looplm.model.layers import parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import on_each_device, per_channel, use
from looplm.sharding.rules import activation_spec

TINY = 1e-18
"""A smaller sum of chosen scores counts as this. Its square, by which the gradient divides, is a float32 number."""


class Router(nnx.Module):
    """Scores all experts for every token and takes the best; float32 at least."""

    def __init__(self, dim: int, moe: schema.MoE, init: Init, *, rngs: nnx.Rngs):
        E, rows = moe.num_experts, moe.bias_rows
        self.moe = moe
        self.kernel = parameter(rngs, init.router, (dim, E), ("embed", "routes"), wide=True, loops=moe.router_loops)

        def table(*, balances: bool) -> nnx.Param:
            return parameter(rngs, zeros, (rows, E), ("one", "routes"), elementwise=True, balances=balances)

        self.loop_bias = table(balances=False) if moe.loop_biases else None
        self.balance_bias = table(balances=True) if moe.balance.bias_rate else None

    def __call__(self, x_BSD: jax.Array, loop_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Choose experts. Returns (ids of the chosen ones (B, S, k), their weights (B, S, k), scores (B, S, E), logits
        (B, S, E)), all in the layout of the residual stream.

        loop_B: number of the loop from 0; (B,), or (1,) for all sequences.
        """
        moe, x_BSD = self.moe, at_least_fp32(x_BSD)
        logits_BSE = jnp.einsum(
            "BSD,DE->BSE",
            x_BSD,
            use(self.kernel, x_BSD.dtype),
            out_sharding=activation_spec("batch", "residual", "routes"),
            precision="highest",  # else float32 would be bfloat16 on a TPU
        )
        if self.loop_bias is not None:
            logits_BSE = _add_row(logits_BSE, use(self.loop_bias, x_BSD.dtype), loop_B)
        scores_BSE = jax.nn.softmax(logits_BSE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BSE)
        wanted_BSE = jax.lax.stop_gradient(scores_BSE)
        if self.balance_bias is not None:
            # The bias decides which experts are chosen, and does not enter their weights.
            wanted_BSE = _add_row(wanted_BSE, jax.lax.stop_gradient(use(self.balance_bias, x_BSD.dtype)), loop_B)
        ids_BSk = top_k_ids(wanted_BSE, moe.experts_per_token)
        weights_BSk = jnp.take_along_axis(scores_BSE, ids_BSk, axis=-1)
        if moe.renormalise:
            # The sum is 0 where the scores of all chosen experts underflow (sigmoids of logits below -88).
            weights_BSk /= jnp.maximum(jnp.sum(weights_BSk, axis=-1, keepdims=True), TINY)
        return ids_BSk, weights_BSk, scores_BSE, logits_BSE


def top_k_ids(wanted: jax.Array, count: int) -> jax.Array:
    """Return the ids of the `count` highest values, the highest first.

    wanted: (B, S, ..., E), in the layout of the residual stream.
    """

    def ids(wanted: jax.Array) -> jax.Array:
        return jax.lax.top_k(wanted, count)[1]

    if (spec := activation_spec("batch", "residual", *("routes",) * (wanted.ndim - 2))) is None:
        return ids(wanted)
    # Per device: XLA for a CPU would gather the scores of all devices on each.
    return on_each_device(ids, wanted, out_specs=spec)


def _add_row(x_BSE: jax.Array, table_TE: jax.Array, loop_B: jax.Array) -> jax.Array:
    """Add the row of the table that belongs to the loop of every sequence."""
    row_B11 = jnp.minimum(loop_B, table_TE.shape[0] - 1).astype(x_BSE.dtype).reshape(-1, 1, 1)

    def add(*arrays: jax.Array) -> jax.Array:
        *rows, x_BSE, row_B11 = arrays
        # The gradient of a choice is a sum over tokens; that of a lookup would be a scatter of all of them.
        return x_BSE + jnp.select([row_B11 == t for t in range(len(rows))], rows)

    rows = [table_TE[t] for t in range(table_TE.shape[0])]  # JAX 0.12 does not iterate over arrays marked `reduced`
    return per_channel(add, rows, x_BSE, row_B11)
