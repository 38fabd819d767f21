"""The feed-forward branch of a layer: (B, S, D) -> (B, S, D)."""

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.init import initializers
from looplm.model.layers import Linear


class TwoMatrices(nnx.Module):
    """activation(x W_up) W_down."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs, hidden_dim: int | None = None):
        D, F = config.dim, hidden_dim or config.hidden_dim
        init, out = initializers(config), ("batch", "sequence", "embed")
        self.up = self.widen(config, F, rngs)
        self.down = Linear(rngs, init["residual_output"], "BSF,FD->BSD", (F, D), ("hidden", "embed"), out)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        raise NotImplementedError("one of the subclasses")

    @staticmethod
    def widen(config: Model, F: int, rngs: nnx.Rngs) -> Linear:
        """Make a matrix from the residual stream to the inner width."""
        D = config.dim
        out = ("batch", "sequence", "hidden")
        return Linear(rngs, initializers(config)["linear"], "BSD,DF->BSF", (D, F), ("embed", "hidden"), out)


class SwiGLU(TwoMatrices):
    """silu(x W_gate) * (x W_up) W_down (arXiv 2002.05202)."""

    def __init__(self, config: Model, *, rngs: nnx.Rngs, hidden_dim: int | None = None):
        super().__init__(config, rngs=rngs, hidden_dim=hidden_dim)
        self.gate = self.widen(config, hidden_dim or config.hidden_dim, rngs)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BSD)) * self.up(x_BSD))


class GELU(TwoMatrices):
    """gelu(x W_up) W_down, the tanh form (arXiv 1606.08415)."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x_BSD), approximate=True))


class SquaredReLU(TwoMatrices):
    """scale * relu(x)^2 (arXiv 2109.08668)."""

    def __init__(self, config: Model, *, scale: float, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.scale = scale

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.down(self.scale * jnp.square(jax.nn.relu(self.up(x_BSD))))


def build_dense(
    config: Model, kind: schema.SwiGLU | schema.GELU | schema.SquaredReLU, *, rngs: nnx.Rngs
) -> TwoMatrices:
    """Make the dense feed-forward that the config names."""
    match kind:
        case schema.SwiGLU():
            return SwiGLU(config, rngs=rngs)
        case schema.GELU():
            return GELU(config, rngs=rngs)
        case schema.SquaredReLU(scale=scale):
            return SquaredReLU(config, scale=scale, rngs=rngs)
