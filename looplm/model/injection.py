"""How the input enters every loop."""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import AddInjection, ConcatInjection, Model, NoInjection
from looplm.model.init import initializers
from looplm.model.layers import Linear


class Concat(nnx.Module):
    """One linear map of [state; input] (arXiv 2502.05171); the kernel is kept as two (D, D) halves, [state, input]."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs):
        D = config.dim
        self.linear = Linear(
            rngs, initializers(config)["injection"], "iBSD,iDE->BSE", (2, D, D), ("one", "embed", "embed_out"),
            ("batch", "sequence", "embed"),
        )  # fmt: skip

    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return self.linear(jnp.stack([state_BSD, input_BSD]))


class Add(nnx.Module):
    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return state_BSD + input_BSD


class Nothing(nnx.Module):
    def __call__(self, state_BSD: jax.Array, input_BSD: jax.Array) -> jax.Array:
        return state_BSD


def build_injection(config: Model, *, rngs: nnx.Rngs) -> Nothing | Add | Concat:
    match config.injection:
        case NoInjection():
            return Nothing()
        case AddInjection():
            return Add()
        case ConcatInjection():
            return Concat(config, rngs=rngs)
