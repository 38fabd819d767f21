"""Which experts a token uses, and with what weight."""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.init import initializers
from looplm.model.layers import parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import lay_out, use
from looplm.sharding.rules import activation_spec


class Router(nnx.Module):
    """Scores all experts for every token and takes the best; float32 at least."""

    def __init__(self, config: Model, moe: schema.MoE, *, rngs: nnx.Rngs):
        init, E, rows = initializers(config), moe.num_experts, max(moe.loop_biases, 1)
        self.moe = moe
        self.kernel = parameter(rngs, init["router"], (config.dim, E), ("embed", "routes"), wide=True)

        def table() -> nnx.Param:
            return parameter(rngs, init["router_bias"], (rows, E), ("one", "routes"), elementwise=True)

        self.loop_bias = table() if moe.loop_biases else None
        self.balance_bias = table() if moe.balance.bias_rate else None

    def __call__(self, x_BSD: jax.Array, loop_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns (ids of the chosen experts (B, S, k), their weights (B, S, k), scores (B, S, E), logits (B, S, E)).

        loop_B: number of the loop from 0; (B,), or (1,) for all sequences.
        """
        moe, x_BSD = self.moe, at_least_fp32(x_BSD)
        logits_BSE = jnp.einsum(
            "BSD,DE->BSE", x_BSD, use(self.kernel, x_BSD.dtype),
            out_sharding=activation_spec("batch", "sequence", "routes"),
            precision="highest",  # else float32 would be bfloat16 on a TPU
        )  # fmt: skip
        if self.loop_bias is not None:
            logits_BSE += _row(self.loop_bias, loop_B, x_BSD)[:, None]
        scores_BSE = jax.nn.softmax(logits_BSE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BSE)
        wanted_BSE = jax.lax.stop_gradient(scores_BSE)
        if self.balance_bias is not None:
            # Chooses, but does not weigh.
            wanted_BSE += jax.lax.stop_gradient(_row(self.balance_bias, loop_B, x_BSD))[:, None]
        ids_BSk = jax.lax.top_k(wanted_BSE, moe.experts_per_token)[1]
        weights_BSk = jnp.take_along_axis(scores_BSE, ids_BSk, axis=-1)
        if moe.renormalise:
            weights_BSk /= jnp.sum(weights_BSk, axis=-1, keepdims=True)
        return ids_BSk, weights_BSk, scores_BSE, logits_BSE


def _row(table: nnx.Param, loop_B: jax.Array, x_BSD: jax.Array) -> jax.Array:
    """The row of the table for the loop of every sequence, (B, E)."""
    rows_TE = use(table, x_BSD.dtype)
    row_B = jnp.minimum(jnp.broadcast_to(loop_B, x_BSD.shape[:1]), rows_TE.shape[0] - 1)
    return rows_TE.at[lay_out(row_B, "batch")].get(out_sharding=activation_spec("batch", "routes"))
