"""How a token knows its place, where it is not by rotation (`ops.rope`)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import LearnedPositions, Model
from looplm.model.init import initializers
from looplm.model.layers import Linear, parameter
from looplm.ops.attention import Mask
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import per_channel, split_sequence, use
from looplm.sharding.rules import activation_spec

BASE = 10_000.0


class RelativePositions(nnx.Module):
    """What is added to the scores of a query: (q + v) r_d, d being the distance to the key; content is compared with
    q + u (arXiv 1901.02860, section 3.3)."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D, N, H, init = config.dim, config.num_heads, config.head_size, initializers(config)
        self.dim, self.head_size = D, H
        self.project = Linear(
            rngs, init["linear"], "TD,DNH->TNH", (D, N, H), ("embed", "heads", "head_dim"),
            ("all_keys", "heads", "head_dim"),
        )  # fmt: skip

        def vector() -> nnx.Param:
            return parameter(rngs, init["attention_bias"], (N, H), ("heads", "head_dim"), elementwise=True)

        self.content, self.position = vector(), vector()

    def __call__(self, q_BSNH: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
        """Returns (queries that are compared with keys (B, S, N, H), what is added to the scaled scores
        (B, N, S, T))."""
        q_BSNH, with_position_BSNH = (
            per_channel(jnp.add, [use(vector, q_BSNH.dtype)], q_BSNH) for vector in (self.content, self.position)
        )
        r_TNH = self.project(sinusoids(mask.num_keys, self.dim).astype(q_BSNH.dtype))
        scores_BNST = jnp.einsum(
            "BSNH,TNH->BNST", with_position_BSNH, r_TNH,
            out_sharding=activation_spec("batch", "heads", "sequence", "all_keys"),
        )  # fmt: skip
        distance_BST = mask.distances(q_BSNH.shape[1])
        index_BNST = jnp.broadcast_to(jnp.maximum(distance_BST, 0)[:, None], scores_BNST.shape)
        bias_BNST = jnp.take_along_axis(scores_BNST, index_BNST, axis=3)
        return q_BSNH, bias_BNST / math.sqrt(self.head_size)


class PositionTable(nnx.Module):
    """A learned vector per position."""

    def __init__(self, config: Model, positions: LearnedPositions, *, rngs: nnx.Rngs):
        self.table = parameter(
            rngs, initializers(config)["embedding"], (positions.length, config.dim), ("one", "embed")
        )

    def __call__(self, positions_BS: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Positions beyond the table get the last vector."""
        table_TD = use(self.table, dtype)
        positions_BS = jnp.minimum(positions_BS, table_TD.shape[0] - 1)
        spec = activation_spec("batch", "sequence", "embed")
        return split_sequence(table_TD.at[positions_BS].get(out_sharding=spec))


def sinusoids(length: int, dim: int) -> jax.Array:
    """sin and cos of distances 0..length - 1, (length, dim) float32; sines first."""
    angles = jnp.arange(length)[:, None] / BASE ** (jnp.arange(0, dim, 2) / dim)
    return at_least_fp32(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :dim])
