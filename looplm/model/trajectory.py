"""Trajectories: loops as steps from time 0 to time 1, which know their time and their size (arXiv 2602.11451)."""

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from looplm.config.schema import Model, TrajectoryConditioning
from looplm.model.context import Context
from looplm.model.convolution import biased
from looplm.model.depth import Loop
from looplm.model.init import Init
from looplm.model.layers import Linear, parameter
from looplm.sharding.collective import lay_out

LONGEST = 10_000.0
"""The slowest rate of the features is about 1 over this, the fastest is 1."""


class Moment(NamedTuple):
    """Where on a trajectory a loop is. Of all loops, with a leading dim that counts them, it is what
    `Forward.per_loop` may be."""

    time: jax.Array
    """The sum of the steps before, from 0 to below 1; () or (B,)."""
    step: jax.Array
    """The step that the loop makes, above 0; () or (B,)."""


class TimeEmbedding(nnx.Module):
    """silu(features W + a) V + b: a number of every sequence as a vector."""

    def __init__(self, config: Model, features: int, *, rngs: nnx.Rngs):
        D, matrix, out = config.dim, Init.of(config).matrix, ("batch", "embed")
        self.features = features
        self.up = Linear(rngs, matrix, "BF,FD->BD", (features, D), ("channels", "embed"), out)
        self.up_bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True)
        self.down = Linear(rngs, matrix, "BD,DE->BE", (D, D), ("embed", "embed_out"), out)
        self.down_bias = parameter(rngs, zeros, (D,), ("embed",), elementwise=True)

    def __call__(self, number_B: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Return vectors (B, D) of the type. number_B: float32 at least."""
        features_BF = lay_out(time_features(number_B, self.features).astype(dtype), "batch", "embed")
        return biased(self.down(jax.nn.silu(biased(self.up(features_BF), self.up_bias))), self.down_bias)


class Trajectory(nnx.Module):
    """Hands the layers of the block a vector of time and step, by which their branches are modulated. Without a
    trajectory of the caller's, R loops are steps of 1/R."""

    def __init__(self, config: Model, kind: TrajectoryConditioning, *, rngs: nnx.Rngs):
        self.time = TimeEmbedding(config, kind.features, rngs=rngs)
        self.step = TimeEmbedding(config, kind.features, rngs=rngs)

    def __call__(self, x_BSD: jax.Array, context: Context) -> tuple[jax.Array, Context]:
        loop, dtype = context.loop, x_BSD.dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        moment = uniform(loop, wide) if loop.own is None else loop.own
        time_B, step_B = (jnp.broadcast_to(number, x_BSD.shape[:1]).astype(wide) for number in moment)
        condition_BD = self.time(time_B, dtype) + self.step(step_B, dtype)
        # The moment is used up: what a loop has for itself beside it is a memory of the layers.
        return x_BSD, replace(context, condition_BD=condition_BD, loop=replace(loop, own=None))


def uniform(loop: Loop, dtype: jax.typing.DTypeLike) -> Moment:
    """Return the moment of a loop among equal steps, each (1,) or (B,)."""
    step_B = 1 / loop.total_B.astype(dtype)
    return Moment(loop.number_B * step_B, step_B)


def draw_trajectory(most: int, key: jax.Array, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, Moment]:
    """Draw a trajectory of fewer than `most` steps, which are multiples of 1 / `most` and sum to 1.

    The number of steps is uniform in 1..most-1. Each but the last is uniform among those that leave at least 1 / `most`
    to every step that follows; the last is what is left.

    Returns (number of steps, int32 (); moments, each (most - 1,); those after the last step mean nothing).
    """
    number_key, step_key = jax.random.split(key)
    count = jax.random.randint(number_key, (), 1, most, jnp.int32)

    def take(left: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        following = count - 1 - i
        drawn = jax.random.randint(jax.random.fold_in(step_key, i), (), 1, left - following + 1, jnp.int32)
        units = jnp.where(following > 0, drawn, left)
        return left - units, (most - left, units)

    _, units_2R = jax.lax.scan(take, jnp.full_like(count, most), jnp.arange(most - 1, dtype=jnp.int32))
    return count, Moment(*(units_R.astype(dtype) / most for units_R in units_2R))


def time_features(number_B: jax.Array, count: int) -> jax.Array:
    """Return cosines, then sines of numbers at geometric rates, (B, count), with a zero at the end of an odd count."""
    half = count // 2
    rates_F = jnp.exp(jnp.arange(half, dtype=number_B.dtype) * (-math.log(LONGEST) / half))
    angles_BF = number_B[:, None] * rates_F
    features_BF = jnp.concatenate([jnp.cos(angles_BF), jnp.sin(angles_BF)], axis=-1)
    return jnp.pad(features_BF, [(0, 0), (0, count % 2)])
