"""The feed-forward branch of a layer: (B, S, D) -> (B, S, D)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.convolution import Convolution, ConvReLU, biased, branch_biased
from looplm.model.init import Init
from looplm.model.layers import Linear, parameter

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=True),
    "gelu_exact": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
"""By name, elementwise."""


class TwoMatrices(nnx.Module):
    """activation(x W_up) W_down."""

    def __init__(self, D: int, F: int, init: Init, *, rngs: nnx.Rngs):
        out = ("batch", "sequence", "embed")
        self.up = self.widen(D, F, init, rngs)
        self.down = Linear(rngs, init.output, "BSF,FD->BSD", (F, D), ("hidden", "embed"), out)

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        """positions_BS: in the document, for those that look at tokens before."""
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

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BSD)) * self.up(x_BSD))


class ConvSwiGLU(SwiGLU):
    """silu(conv(silu(x W_gate) * (x W_up))) W_down (arXiv 2512.14693)."""

    def __init__(self, D: int, F: int, init: Init, *, kernel: int, rngs: nnx.Rngs):
        super().__init__(D, F, init, rngs=rngs)
        self.conv = Convolution(kernel, F, rngs=rngs)

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        inner_BSF = jax.nn.silu(self.gate(x_BSD)) * self.up(x_BSD)
        return self.down(jax.nn.silu(self.conv(inner_BSF, positions_BS)))


class Activated(TwoMatrices):
    """activation(x W_up + a) W_down + b (arXiv 1706.03762, 1606.08415)."""

    def __init__(
        self,
        D: int,
        F: int,
        init: Init,
        *,
        activation: Callable[[jax.Array], jax.Array],
        bias: bool,
        rngs: nnx.Rngs,
    ):
        super().__init__(D, F, init, rngs=rngs)
        self.activation = activation
        self.up_bias = parameter(rngs, zeros, (F,), ("hidden",), elementwise=True) if bias else None
        self.down_bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True) if bias else None

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        out_BSD = self.down(self.activation(biased(self.up(x_BSD), self.up_bias)))
        return branch_biased(out_BSD, self.down_bias)


class SquaredReLU(TwoMatrices):
    """scale * relu(x)^2 (arXiv 2109.08668)."""

    def __init__(self, D: int, F: int, init: Init, *, scale: float, rngs: nnx.Rngs):
        super().__init__(D, F, init, rngs=rngs)
        self.scale = scale

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        return self.down(self.scale * jnp.square(jax.nn.relu(self.up(x_BSD))))


def build_dense(
    config: Model,
    kind: schema.SwiGLU | schema.GELU | schema.SquaredReLU | schema.ReLU | schema.ConvSwiGLU | schema.ConvReLU,
    init: Init,
    *,
    rngs: nnx.Rngs,
) -> TwoMatrices | ConvReLU:
    """Make the dense feed-forward that the config names."""
    D, F = config.dim, config.hidden_dim
    match kind:
        case schema.SwiGLU():
            return SwiGLU(D, F, init, rngs=rngs)
        case schema.ConvSwiGLU(kernel=kernel):
            return ConvSwiGLU(D, F, init, kernel=kernel, rngs=rngs)
        case schema.GELU(exact=exact, bias=bias):
            return Activated(
                D, F, init, activation=ACTIVATIONS["gelu_exact" if exact else "gelu"], bias=bias, rngs=rngs
            )
        case schema.SquaredReLU(scale=scale):
            return SquaredReLU(D, F, init, scale=scale, rngs=rngs)
        case schema.ReLU(bias=bias):
            return Activated(D, F, init, activation=ACTIVATIONS["relu"], bias=bias, rngs=rngs)
        case schema.ConvReLU():
            return ConvReLU(config, kind, init, rngs=rngs)
