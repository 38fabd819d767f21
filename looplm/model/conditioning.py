"""Conditioning: what tells a loop which one it is."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import (
    Model,
    NoConditioning,
    SinusoidalConditioning,
    TrajectoryConditioning,
    VectorConditioning,
)
from looplm.model.context import Context
from looplm.model.layers import parameter
from looplm.model.trajectory import Trajectory
from looplm.sharding.collective import lay_out, per_channel, use

LONGEST = 10_000.0
"""Radians of the longest wavelength, over those of the shortest."""


class Conditioning(Protocol):
    """What tells a loop which one it is; a Flax module."""

    def __call__(self, x_BSD: jax.Array, context: Context) -> tuple[jax.Array, Context]:
        """Return (what enters the shared block, (B, S, D), in x's type; the context of its layers); `context.loop` is
        the loop."""


class LoopVector(nnx.Module):
    """Adds a vector that every loop has for itself to what enters the shared block."""

    def __init__(self, dim: int, kind: VectorConditioning, *, rngs: nnx.Rngs):
        self.vector = parameter(rngs, zeros, (dim,), ("embed",), elementwise=True, loops=kind.loops)

    def __call__(self, x_BSD: jax.Array, context: Context) -> tuple[jax.Array, Context]:
        return per_channel(jnp.add, [use(self.vector, x_BSD.dtype)], x_BSD), context


class Signals(nnx.Module):
    """Adds the sinusoids of the loop's number and of every token's position (arXiv 1807.03819)."""

    def __init__(self, kind: SinusoidalConditioning):
        self.with_positions = kind.positions

    def __call__(self, x_BSD: jax.Array, context: Context) -> tuple[jax.Array, Context]:
        signal = timing_signal(context.loop.number_B[:, None], x_BSD.shape[-1], x_BSD.dtype)
        if self.with_positions:
            of_positions_BSD = timing_signal(context.positions_BS, x_BSD.shape[-1], x_BSD.dtype)
            signal = lay_out(of_positions_BSD, "batch", "residual", "embed") + signal
        return x_BSD + signal, context


def timing_signal(number: jax.Array, dim: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Return sines, then cosines of numbers (...): (..., dim), with a zero at the end of an odd dim. The wavelengths
    are a geometric sequence that includes both ends (tensor2tensor's `get_timing_signal_1d`)."""
    count = dim // 2
    wide = jnp.promote_types(dtype, jnp.float32)
    rates = jnp.exp(jnp.arange(count, dtype=wide) * (-math.log(LONGEST) / max(count - 1, 1)))
    angles = number[..., None].astype(wide) * rates
    signal = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(signal, [(0, 0)] * number.ndim + [(0, dim % 2)]).astype(dtype)


def build_conditioning(config: Model, *, rngs: nnx.Rngs) -> Conditioning | None:
    """Make the conditioning that the config names; None for none."""
    match config.conditioning:
        case NoConditioning():
            return None
        case VectorConditioning() as kind:
            return LoopVector(config.dim, kind, rngs=rngs)
        case SinusoidalConditioning() as kind:
            return Signals(kind)
        case TrajectoryConditioning() as kind:
            return Trajectory(config, kind, rngs=rngs)
