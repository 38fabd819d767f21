"""The states after every loop, recorded by a halting rule around the model's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.model.context import Context
from looplm.model.halting import Halting, State, Told
from looplm.model.rows import Admitted


class Trail(NamedTuple):
    inner: Any
    """What the rule inside remembers."""
    states_BSRD: jax.Array
    """What was read of the state after the loops so far."""


class Recorder(nnx.Module):
    """The halting rule `inner`, and beside it what is read of the state after every loop."""

    def __init__(self, inner: Halting, num_loops: int):
        self.inner, self.num_loops, self.gathers = inner, num_loops, inner.gathers

    def init(self, h_BSD: jax.Array) -> Trail:
        return Trail(self.inner.init(h_BSD), jnp.stack([jnp.zeros_like(h_BSD)] * self.num_loops, axis=2))

    def admit(self, acc: Trail, h_BSD: jax.Array, context: Context) -> tuple[Trail, Admitted]:
        inner, admitted = self.inner.admit(acc.inner, h_BSD, context)
        return acc._replace(inner=inner), admitted

    def update(self, acc: Trail, old: State, new: State, h_BSD: jax.Array, context: Context) -> tuple[State, Trail]:
        state, inner = self.inner.update(acc.inner, old, new, h_BSD, context)
        is_here_R1 = (jnp.arange(self.num_loops) == context.loop.number_B[0])[:, None]
        return state, Trail(inner, jnp.where(is_here_R1, h_BSD[:, :, None], acc.states_BSRD))

    def finish(self, acc: Trail, h_BSD: jax.Array) -> jax.Array:
        return self.inner.finish(acc.inner, h_BSD)

    def left(self, acc: Trail) -> jax.Array | None:
        return self.inner.left(acc.inner)

    def exits(self, acc: Trail) -> jax.Array:
        return self.inner.exits(acc.inner)

    def told(self, acc: Trail, counted_BS: jax.Array | None, step: jax.Array | None) -> Told | None:
        return self.inner.told(acc.inner, counted_BS, step)
