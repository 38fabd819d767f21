"""The feed-forward branch of a layer: (B, S, D) -> (B, S, D)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.init import Init, uniform_within
from looplm.model.layers import Linear, parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import per_channel, use


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


class Convolution(nnx.Module):
    """sum_k kernel[k] x[s - (K - 1) + k] + bias, every channel by itself, over positions of the same document."""

    def __init__(self, size: int, F: int, *, rngs: nnx.Rngs):
        first, axes = uniform_within(1 / math.sqrt(size)), ("one", "hidden")  # as torch.nn.Conv1d begins
        self.kernel = parameter(rngs, first, (size, F), axes, elementwise=True)
        self.bias = parameter(rngs, first, (F,), axes[1:], elementwise=True)

    def __call__(self, x_BSF: jax.Array, positions_BS: jax.Array | None) -> jax.Array:
        wide_BSF = at_least_fp32(x_BSF)
        kernel_KF, bias_F = (use(vector, wide_BSF.dtype) for vector in (self.kernel, self.bias))
        size = kernel_KF.shape[0]
        rows = [jax.lax.dynamic_index_in_dim(kernel_KF, k, keepdims=False) for k in range(size)]
        seen = [shifted(wide_BSF, size - 1 - k, positions_BS) for k in range(size)]

        def weighted(bias: jax.Array, *rows_and_seen: jax.Array) -> jax.Array:
            return bias + sum(row * x for row, x in zip(rows_and_seen[:size], rows_and_seen[size:], strict=True))

        return per_channel(weighted, [bias_F, *rows], *seen).astype(x_BSF.dtype)


def shifted(x_BSF: jax.Array, count: int, positions_BS: jax.Array | None) -> jax.Array:
    """Put at every place what stood `count` before it in the same document, else zeros."""
    if not count:
        return x_BSF
    before_BSF = jnp.pad(x_BSF, ((0, 0), (count, 0), (0, 0)))[:, : x_BSF.shape[1]]
    return before_BSF if positions_BS is None else jnp.where(positions_BS[..., None] >= count, before_BSF, 0)


class GELU(TwoMatrices):
    """gelu(x W_up) W_down, the tanh form (arXiv 1606.08415)."""

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x_BSD), approximate=True))


class SquaredReLU(TwoMatrices):
    """scale * relu(x)^2 (arXiv 2109.08668)."""

    def __init__(self, D: int, F: int, init: Init, *, scale: float, rngs: nnx.Rngs):
        super().__init__(D, F, init, rngs=rngs)
        self.scale = scale

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        return self.down(self.scale * jnp.square(jax.nn.relu(self.up(x_BSD))))


def build_dense(
    config: Model,
    kind: schema.SwiGLU | schema.GELU | schema.SquaredReLU | schema.ConvSwiGLU,
    init: Init,
    *,
    rngs: nnx.Rngs,
) -> TwoMatrices:
    """Make the dense feed-forward that the config names."""
    D, F = config.dim, config.hidden_dim
    match kind:
        case schema.SwiGLU():
            return SwiGLU(D, F, init, rngs=rngs)
        case schema.ConvSwiGLU(kernel=kernel):
            return ConvSwiGLU(D, F, init, kernel=kernel, rngs=rngs)
        case schema.GELU():
            return GELU(D, F, init, rngs=rngs)
        case schema.SquaredReLU(scale=scale):
            return SquaredReLU(D, F, init, scale=scale, rngs=rngs)
