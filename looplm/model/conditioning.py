"""Conditioning: what tells a loop which one it is."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import Model, NoConditioning, VectorConditioning
from looplm.model.layers import parameter
from looplm.sharding.collective import per_channel, use


class LoopVector(nnx.Module):
    """Adds a vector that every loop has for itself to what enters the shared block, (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, kind: VectorConditioning, *, rngs: nnx.Rngs):
        self.vector = parameter(rngs, zeros, (dim,), ("embed",), elementwise=True, loops=kind.loops)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return per_channel(jnp.add, [use(self.vector, x_BSD.dtype)], x_BSD)


def build_conditioning(config: Model, *, rngs: nnx.Rngs) -> LoopVector | None:
    """Make the conditioning that the config names; None for none."""
    match config.conditioning:
        case NoConditioning():
            return None
        case VectorConditioning() as kind:
            return LoopVector(config.dim, kind, rngs=rngs)
