"""Positions of tokens other than by rotation, which is in `ops.rope`."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config import schema
from looplm.config.schema import LearnedPositions, Model
from looplm.model.init import Init
from looplm.model.layers import parameter
from looplm.ops.attention import Mask
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import lay_out, on_each_device, per_channel, use, vary
from looplm.sharding.rules import activation_spec, splitting

BASE = 10_000.0


def relative_vectors(config: Model, *, rngs: nnx.Rngs) -> tuple[nnx.Param, nnx.Param]:
    """Make what is added to queries per head: u before they meet keys, v before they meet distances."""
    shape, axes = (config.num_heads, config.head_size), ("heads", "head_dim")
    u, v = (parameter(rngs, zeros, shape, axes, elementwise=True) for _ in range(2))
    return u, v


class RelativeVectors(nnx.Module):
    """The two vectors of all layers of a stack."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        self.content, self.position = relative_vectors(config, rngs=rngs)


class RelativePositions(nnx.Module):
    """Scores by distance: a key at distance d has the score (q + u) k + (q + v) r_d, u and v being learned per head and
    r_d a learned projection of sinusoids (arXiv 1901.02860, section 3.3)."""

    def __init__(
        self,
        config: Model,
        init: Init,
        positions: schema.RelativePositions | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        positions = positions or schema.RelativePositions()
        N, H = config.num_heads, config.head_size
        shape, axes = (config.dim, N, H), ("embed", "heads", "head_dim")
        self.kernel = parameter(rngs, init.matrix, shape, axes, gathers_itself=True)

        self.max_distance = positions.max_distance
        if not positions.shared_vectors:
            self.content, self.position = relative_vectors(config, rngs=rngs)

    def __call__(
        self, q_BSNH: jax.Array, mask: Mask, shared: "RelativeVectors | None" = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return (queries to compare with keys (B, S, N, H), what is added to the scaled scores (B, N, S, T)).

        shared: u and v of all layers, where a layer has none of its own.
        """
        vectors = self if shared is None else shared
        content_BSNH, position_BSNH = (
            per_channel(jnp.add, [use(vector, q_BSNH.dtype)], q_BSNH) for vector in (vectors.content, vectors.position)
        )
        shape_BST = (*q_BSNH.shape[:2], mask.num_keys)
        distance_BST = jnp.broadcast_to(jnp.clip(mask.distances(q_BSNH.shape[1]), 0, self.max_distance), shape_BST)
        arrays = position_BSNH, use(self.kernel, q_BSNH.dtype), lay_out(distance_BST, "batch", "sequence", "all_keys")
        spec = activation_spec("batch", "heads", "sequence", "all_keys")
        # Computed per device, so that the kernel's gradient is a partial sum on each like that of any other weight.
        scores_BNST = _by_distance(*arrays) if spec is None else on_each_device(_on_device, *arrays, out_specs=spec)
        return content_BSNH, scores_BNST / math.sqrt(q_BSNH.shape[-1])


def _on_device(q_BSNH: jax.Array, kernel_DNH: jax.Array, distance_BST: jax.Array) -> jax.Array:
    axes = splitting(jax.sharding.get_abstract_mesh()) - {"tensor"}
    return _by_distance(q_BSNH, vary(kernel_DNH, axes), distance_BST)


def _by_distance(q_BSNH: jax.Array, kernel_DNH: jax.Array, distance_BST: jax.Array) -> jax.Array:
    """Return q r_d for the distance d of every query and key, (B, N, S, T)."""
    table_TD = sinusoids(distance_BST.shape[-1], kernel_DNH.shape[0]).astype(q_BSNH.dtype)
    r_TNH = jnp.einsum("TD,DNH->TNH", table_TD, kernel_DNH)
    scores_BNST = jnp.einsum("BSNH,TNH->BNST", q_BSNH, r_TNH)
    return jnp.take_along_axis(scores_BNST, jnp.broadcast_to(distance_BST[:, None], scores_BNST.shape), axis=3)


class PositionTable(nnx.Module):
    """A learned vector per position, to be added to the embedding."""

    def __init__(self, dim: int, positions: LearnedPositions, init: Init, *, rngs: nnx.Rngs):
        self.table = parameter(rngs, init.embedding, (positions.length, dim), ("positions", "embed"))
        self.scale = positions.scale

    def __call__(self, positions_BS: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Look positions up: (B, S, D), laid out like the residual stream. Beyond the table: its last vector."""
        table_TD = use(self.table, dtype)
        # In the layout of the residual stream: every device looks up the positions that it adds, and the gradient of
        # the table is a partial sum on each.
        positions_BS = lay_out(jnp.minimum(positions_BS, table_TD.shape[0] - 1), "batch", "residual")
        rows_BSD = table_TD.at[positions_BS].get(out_sharding=activation_spec("batch", "residual", "embed"))
        return rows_BSD if self.scale == 1 else rows_BSD * jnp.asarray(self.scale, dtype)


def sinusoids(length: int, dim: int) -> jax.Array:
    """Return sin and cos of the distances 0..length - 1, (length, dim), float32 at least; sines first."""
    angles = jnp.arange(length)[:, None] / BASE ** (jnp.arange(0, dim, 2) / dim)
    return at_least_fp32(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :dim])
