"""Several shared blocks, of which every loop applies one: the first share of the loops the first one, and so on (arXiv
1909.11942)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from looplm.config.schema import Model
from looplm.model.apart import Apart, is_apart
from looplm.model.block import Stack
from looplm.model.cache import KVCache
from looplm.model.context import Context
from looplm.model.depth import Loop
from looplm.model.layers import stacked
from looplm.model.report import Report


class Groups(nnx.Module):
    """A block for each of the groups, called as one. Their parameters are stacked on a leading dim."""

    def __init__(self, config: Model, count: int, *, rngs: nnx.Rngs):
        self.count = count
        self.blocks = stacked(lambda rngs: Stack(config, "block", rngs=rngs), count, rngs)

    def __call__(
        self,
        x_BSD: jax.Array,
        context: Context,
        cache: KVCache | None = None,
        embedded_nBSKH: jax.Array | None = None,
        memory_LBMD: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None, Report]:
        """Run the block of this loop; arguments and results as of `Stack`."""
        graph, parameters = nnx.split(self.blocks)
        group = group_of(context.loop, self.count)
        own = jax.tree.map(lambda leaf: row_of(leaf, group), parameters, is_leaf=is_apart)
        return nnx.merge(graph, own)(x_BSD, context, cache, embedded_nBSKH, memory_LBMD)


def group_of(loop: Loop, count: int) -> jax.Array:
    """Return floor(number * groups / loops), int32: all sequences are at one loop. Loops beyond the last apply the last
    group."""
    return jnp.minimum(loop.number_B[0] * count // loop.total_B[0], count - 1)


def row_of(leaf: Any, row: jax.Array) -> jax.Array:
    """Take one row of a stacked parameter."""
    table = jnp.stack(leaf.layers) if isinstance(leaf, Apart) else leaf
    if jax.sharding.get_abstract_mesh().empty:
        return jax.lax.dynamic_index_in_dim(table, row, keepdims=False)
    spec = jax.typeof(table).sharding.spec
    # JAX 0.10 does not infer the sharding of a row of an array that is marked `reduced`.
    own = PartitionSpec(*tuple(spec.partitions)[1:], reduced=spec.reduced)
    return table.at[row].get(out_sharding=own)
