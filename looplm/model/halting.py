"""Halting rules: who takes part in a loop, who has left, and what all loops together give, in training as at inference.

A rule has accumulators of its own, which go from loop to loop beside the state. The body of the loops calls it
(`LoopLM.body`); the driver does not know it.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.model.context import Context
from looplm.model.rows import Admitted
from looplm.sharding.collective import lay_out

State = Any
"""The state of the core: any tree of arrays (B, S, ...)."""
Accumulators = Any
"""What a rule remembers from loop to loop: any tree of arrays (B, S, ...)."""


class Told(NamedTuple):
    """What a rule has to say of a pass in training."""

    cost_B: jax.Array
    """What it adds to the loss of every token of a sequence, its weights included."""
    numbers: dict[str, jax.Array]
    """Means over the tokens of a sequence to log, by metric name, (B,)."""


class Halting(Protocol):
    """Who takes part in a loop, who has left, and what all loops give; a Flax module.

    h_BSD is always what `Core.read` gives of a state, (B, S, D).
    """

    @property
    def gathers(self) -> bool:
        """Whether it may admit `Rows`; the loops that are written out are then told their numbers at trace time."""

    def init(self, h_BSD: jax.Array) -> Accumulators:
        """Make the accumulators before the first loop; h_BSD is of the first state."""

    def admit(self, acc: Accumulators, h_BSD: jax.Array, context: Context) -> tuple[Accumulators, Admitted]:
        """Decide before a loop who takes part in it; h_BSD is of the state that enters.

        Returns (accumulators, which tokens the others may see (B, S) bool; None: all; or the rows that alone go through
        the loop).
        """

    def update(
        self, acc: Accumulators, old: State, new: State, h_BSD: jax.Array, context: Context
    ) -> tuple[State, Accumulators]:
        """Take in a loop that has run, from the state `old` to `new`; h_BSD is of the new one.

        Returns (the state that goes on, accumulators).
        """

    def finish(self, acc: Accumulators, h_BSD: jax.Array) -> jax.Array:
        """Return what coda and head read after the last loop, (B, S, D); h_BSD is of the last state."""

    def left(self, acc: Accumulators) -> jax.Array | None:
        """Return who has left for good, (B, S) bool; None: nobody ever does."""

    def exits(self, acc: Accumulators) -> jax.Array:
        """Return the number of every token's last loop, from 0, (B, S) int32. Not asked where `left` is None."""

    def told(self, acc: Accumulators, counted_BS: jax.Array | None, step: jax.Array | None) -> Told | None:
        """Return what any objective adds to its loss after the last loop, and what is logged; None: nothing.

        Args:
            counted_BS: False for padding; None where there is none.
            step: number of the training step, from 0; None outside of training.
        """


class Never(nnx.Module):
    """Nobody leaves before the last loop, whose state is read. Adds no operation to the program."""

    @property
    def gathers(self) -> bool:
        return False

    def init(self, h_BSD: jax.Array) -> Accumulators:
        return ()

    def admit(self, acc: Accumulators, h_BSD: jax.Array, context: Context) -> tuple[Accumulators, Admitted]:
        return acc, None

    def update(
        self, acc: Accumulators, old: State, new: State, h_BSD: jax.Array, context: Context
    ) -> tuple[State, Accumulators]:
        return new, acc

    def finish(self, acc: Accumulators, h_BSD: jax.Array) -> jax.Array:
        return h_BSD

    def left(self, acc: Accumulators) -> jax.Array | None:
        return None

    def exits(self, acc: Accumulators) -> jax.Array:
        raise AssertionError("nobody leaves")

    def told(self, acc: Accumulators, counted_BS: jax.Array | None, step: jax.Array | None) -> Told | None:
        return None


def select_tokens(chosen_BS: jax.Array, new: State, old: State) -> State:
    """Take `new` for the tokens that are chosen, else `old`: trees with leaves (B, S, ...)."""

    def leaf(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen_BS.reshape(*chosen_BS.shape, *(1,) * (new.ndim - 2)), new, old)

    return jax.tree.map(leaf, new, old)


def mean_over_tokens(x_BS: jax.Array, counted_BS: jax.Array | None) -> jax.Array:
    """Average over the tokens of every sequence, (B,); 0 where there is none."""
    x_BS = lay_out(x_BS, "batch", "sequence")
    if counted_BS is None:
        return jnp.mean(x_BS, axis=1)
    return jnp.sum(jnp.where(counted_BS, x_BS, 0), axis=1) / jnp.maximum(jnp.sum(counted_BS, axis=1), 1)
