"""Convolutions over the positions of a document."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.init import Init, uniform_within
from looplm.model.layers import Linear, parameter
from looplm.ops.precision import at_least_fp32
from looplm.sharding.collective import per_channel, split_sequence, use


class Convolution(nnx.Module):
    """sum_k kernel[k] x[s + ahead - (K - 1) + k] + bias, every channel by itself, over positions of the same
    document."""

    def __init__(self, size: int, F: int, *, axis: str = "hidden", ahead: int = 0, bias: bool = True, rngs: nnx.Rngs):
        """ahead: how many of the positions that it sees follow."""
        first, axes, self.ahead = uniform_within(1 / math.sqrt(size)), ("one", axis), ahead  # as torch.nn.Conv1d begins
        self.kernel = parameter(rngs, first, (size, F), axes, elementwise=True)
        self.bias = parameter(rngs, first, (F,), axes[1:], elementwise=True) if bias else None

    def __call__(self, x_BSF: jax.Array, positions_BS: jax.Array | None) -> jax.Array:
        wide_BSF = at_least_fp32(x_BSF)
        kernel_KF = use(self.kernel, wide_BSF.dtype)
        size = kernel_KF.shape[0]
        rows = [jax.lax.dynamic_index_in_dim(kernel_KF, k, keepdims=False) for k in range(size)]
        seen = neighbours(wide_BSF, size, self.ahead, positions_BS)
        biases = [] if self.bias is None else [use(self.bias, wide_BSF.dtype)]

        def weighted(*arrays: jax.Array) -> jax.Array:
            total = functools.reduce(jnp.add, map(jnp.multiply, arrays[:size], arrays[-size:]))
            return arrays[size] + total if biases else total

        return per_channel(weighted, [*rows, *biases], *seen).astype(x_BSF.dtype)


def neighbours(x_BSF: jax.Array, size: int, ahead: int, positions_BS: jax.Array | None) -> list[jax.Array]:
    """Return what the places of a convolution see: x shifted `size` times, the farthest before first."""
    return [shifted(x_BSF, size - 1 - k - ahead, positions_BS) for k in range(size)]


def shifted(x_BSF: jax.Array, count: int, positions_BS: jax.Array | None) -> jax.Array:
    """Put at every place what stood `count` before it in the same document, or behind it for a negative count; else
    zeros."""
    length = x_BSF.shape[1]
    if not count:
        return x_BSF
    if count > 0:
        before_BSF = jnp.pad(x_BSF, ((0, 0), (count, 0), (0, 0)))[:, :length]
        return before_BSF if positions_BS is None else jnp.where(positions_BS[..., None] >= count, before_BSF, 0)
    behind_BSF = jnp.pad(x_BSF, ((0, 0), (0, -count), (0, 0)))[:, -count:]
    if positions_BS is None:
        return behind_BSF
    # The token there is of the same document if it is far enough from the document's beginning.
    reached_BS = jnp.pad(positions_BS, ((0, 0), (0, -count)))[:, -count:]
    return jnp.where(reached_BS[..., None] >= -count, behind_BSF, 0)


def biased(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """Add a bias per channel, if there is one."""
    return x if bias is None else per_channel(jnp.add, [use(bias, x.dtype)], x)


def branch_biased(out_BSD: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """Add a bias to what a branch gives, in the layout of the residual stream: what is there before may be parts of a
    sum on every device."""
    return out_BSD if bias is None else biased(split_sequence(out_BSD), bias)


class Wide(nnx.Module):
    """A convolution over positions from all channels to all channels, with a bias: one kernel, or one of every channel
    by itself and then a matrix."""

    def __init__(
        self,
        size: int,
        init: Initializer,
        shape: tuple[int, int],
        axes: tuple[str, str],
        *,
        separable: bool,
        ahead: int,
        rngs: nnx.Rngs,
    ):
        self.size, self.ahead, out = size, ahead, ("batch", "sequence", axes[1])
        self.each = Convolution(size, shape[0], axis=axes[0], ahead=ahead, bias=False, rngs=rngs) if separable else None
        self.mix = (
            Linear(rngs, init, "BSI,IO->BSO", shape, axes, out)
            if separable
            else Linear(rngs, init, "kBSI,kIO->BSO", (size, *shape), ("one", *axes), out)
        )
        self.bias = parameter(rngs, zeros, shape[1:], axes[1:], elementwise=True)

    def __call__(self, x_BSI: jax.Array, positions_BS: jax.Array | None) -> jax.Array:
        if self.each is not None:
            return biased(self.mix(self.each(x_BSI, positions_BS)), self.bias)
        return biased(self.mix(jnp.stack(neighbours(x_BSI, self.size, self.ahead, positions_BS))), self.bias)


class ConvReLU(nnx.Module):
    """conv(relu(conv(x))) over positions (arXiv 1807.03819)."""

    def __init__(self, config: Model, kind: schema.ConvReLU, init: Init, *, rngs: nnx.Rngs):
        D, F = config.dim, config.hidden_dim
        self.relu_twice = kind.relu_twice

        def convolution(size: int, init: Initializer, shape: tuple[int, int], axes: tuple[str, str]) -> Wide:
            ahead = (size - 1) // 2 if config.attention_mask == "full" else 0
            return Wide(size, init, shape, axes, separable=kind.separable, ahead=ahead, rngs=rngs)

        self.up = convolution(kind.kernel, init.matrix, (D, F), ("embed", "hidden"))
        self.down = convolution(kind.second_kernel, init.output, (F, D), ("hidden", "embed"))

    def __call__(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> jax.Array:
        out_BSD = self.down(jax.nn.relu(self.up(x_BSD, positions_BS)), positions_BS)
        return jax.nn.relu(out_BSD) if self.relu_twice else out_BSD
