"""Halting rules: who takes part in a loop, who has left, and what all loops together give, in training as at inference.

A rule has accumulators of its own, which go from loop to loop beside the state. The body of the loops calls it
(`LoopLM.body`); the driver does not know it.
"""

from typing import Any, Protocol

import jax
from flax import nnx

from looplm.config.schema import Model, NeverHalting, OwnHalting
from looplm.model.context import Context

State = Any
"""The state of the core: any tree of arrays (B, S, ...)."""
Accumulators = Any
"""What a rule remembers from loop to loop: any tree of arrays (B, S, ...)."""


class Halting(Protocol):
    """Who takes part in a loop, who has left, and what all loops give; a Flax module.

    h_BSD is always what `Core.read` gives of a state, (B, S, D).
    """

    def init(self, h_BSD: jax.Array) -> Accumulators:
        """Make the accumulators before the first loop; h_BSD is of the first state."""

    def admit(self, acc: Accumulators, h_BSD: jax.Array, context: Context) -> tuple[Accumulators, jax.Array | None]:
        """Decide before a loop who takes part in it; h_BSD is of the state that enters.

        Returns (accumulators, which tokens the others may see (B, S) bool; None: all).
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


class Never(nnx.Module):
    """Nobody leaves before the last loop, whose state is read. Adds no operation to the program."""

    def init(self, h_BSD: jax.Array) -> Accumulators:
        return ()

    def admit(self, acc: Accumulators, h_BSD: jax.Array, context: Context) -> tuple[Accumulators, jax.Array | None]:
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


def build_halting(config: Model, *, rngs: nnx.Rngs) -> Halting:
    """Make the halting rule that the config names."""
    match config.halting:
        case NeverHalting():
            return Never()
        case OwnHalting() as own:
            return own.build(config, rngs=rngs)
