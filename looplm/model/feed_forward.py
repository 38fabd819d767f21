"""The feed-forward branch of a layer: (B, S, D) -> (B, S, D)."""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.init import Init
from looplm.model.layers import Linear


class TwoMatrices(nnx.Module):
    """activation(x W_up) W_down."""

    def __init__(self, D: int, F: int, init: Init, *, rngs: nnx.Rngs):
        out = ("batch", "sequence", "embed")
        self.up = self.widen(D, F, init, rngs)
        self.down = Linear(rngs, init.output, "BSF,FD->BSD", (F, D), ("hidden", "embed"), out)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        raise NotImplementedError("one of the subclasses")

    @staticmethod
    def widen(D: int, F: int, init: Init, rngs: nnx.Rngs) -> Linear:
        """Make a matrix from the residual stream to the inner width."""
        out = ("batch", "sequence", "hidden")
        return Linear(rngs, init.matrix, "BSD,DF->BSF", (D, F), ("embed", "hidden"), out)


class SwiGLU(TwoMatrices):
    """silu(x W_gate) * (x W_up) W_down (arXiv 2002.05202)."""

    def __init__(self, D: int, F: int, init: Init, *, rngs: nnx.Rngs):
        super().__init__(D, F, init, rngs=rngs)
        self.gate = self.widen(D, F, init, rngs)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BSD)) * self.up(x_BSD))


class GELU(TwoMatrices):
    """gelu(x W_up) W_down, the tanh form (arXiv 1606.08415)."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x_BSD), approximate=True))


class SquaredReLU(TwoMatrices):
    """scale * relu(x)^2 (arXiv 2109.08668)."""

    def __init__(self, D: int, F: int, init: Init, *, scale: float, rngs: nnx.Rngs):
        super().__init__(D, F, init, rngs=rngs)
        self.scale = scale

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(self.scale * jnp.square(jax.nn.relu(self.up(x_BSD))))


def build_dense(
    config: Model, kind: schema.SwiGLU | schema.GELU | schema.SquaredReLU, init: Init, *, rngs: nnx.Rngs
) -> TwoMatrices:
    """Make the dense feed-forward that the config names."""
    D, F = config.dim, config.hidden_dim
    match kind:
        case schema.SwiGLU():
            return SwiGLU(D, F, init, rngs=rngs)
        case schema.GELU():
            return GELU(D, F, init, rngs=rngs)
        case schema.SquaredReLU(scale=scale):
            return SquaredReLU(D, F, init, scale=scale, rngs=rngs)
