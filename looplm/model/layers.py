"""The smallest parts: parameters with logical axes, a linear map, a norm, an embedding."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer

from looplm.ops.norm import rms_norm
from looplm.sharding.rules import activation_spec

Module = TypeVar("Module", bound=nnx.Module)


def parameter(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    elementwise: bool = False,
    decays: bool | None = None,
) -> nnx.Param:
    """A float32 parameter with its logical axes (see `sharding.rules`).

    `elementwise` marks what is multiplied with or added to activations; `sharding.collective` treats it differently.
    `decays` says whether weight decay applies; None means to all that are not elementwise.
    """
    decays = not elementwise if decays is None else decays
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes, elementwise=elementwise, decays=decays)


def stacked(create: Callable[[nnx.Rngs], Module], count: int, rngs: nnx.Rngs) -> Module:
    """`count` modules as one, their parameters stacked on a leading dim that their axes do not name."""
    return nnx.split_rngs(splits=count)(nnx.vmap(create, in_axes=0, out_axes=0))(rngs)


class Linear(nnx.Module):
    """einsum(equation, x, kernel). The kernel stays float32 and is cast where it is used, inside the loop's body, so
    that its gradient is summed over loops in float32."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        init: Initializer,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        out: tuple[str, ...],
        *,
        decays: bool = True,
    ):
        self.equation, self.out = equation, out
        self.kernel = parameter(rngs, init, shape, axes, decays=decays)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum(self.equation, x, self.kernel[...].astype(x.dtype), out_sharding=activation_spec(*self.out))


class RMSNorm(nnx.Module):
    """Over the last dim, with a learned scale."""

    def __init__(self, rngs: nnx.Rngs, init: Initializer, dim: int, eps: float, axis: str = "embed"):
        self.eps = eps
        self.scale = parameter(rngs, init, (dim,), (axis,), elementwise=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...]
        if scale.ndim > 1 and x.ndim > scale.ndim:
            scale = scale[:, :, None]  # one copy per sequence (see `sharding.collective`), and x has heads
        return rms_norm(x, scale, eps=self.eps)


class UnitNorm(nnx.Module):
    """RMSNorm without a scale."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x)


class Embedding(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, init: Initializer, vocab_size: int, dim: int):
        self.table = parameter(rngs, init, (vocab_size, dim), ("vocab", "embed"))

    def __call__(self, tokens_BS: jax.Array) -> jax.Array:
        """Looks tokens up. Ids must be below V: JAX would silently clamp larger ones (the loader checks them)."""
        table_VD = self.table[...]
        if (spec := activation_spec("batch", "sequence", "embed")) is None:
            return table_VD[tokens_BS]
        # A gather cannot index a dim that is split over devices: make the rows whole, keep the `reduced` marking.
        reduced = jax.typeof(table_VD).sharding.spec.reduced
        rows_VD = jax.sharding.reshard(table_VD, jax.sharding.PartitionSpec(None, None, reduced=reduced))
        return rows_VD.at[tokens_BS].get(out_sharding=spec)
