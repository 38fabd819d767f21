"""Who takes part in a loop, who has left, and what all loops together give; in training and at inference alike.

A rule has accumulators of its own, which the loops carry beside the state. The body of the loops calls it (`lm.py`);
the driver knows none.
"""

from typing import Any, Protocol

import jax
from flax import nnx

from looplm.config.schema import Model, NeverHalting, OwnHalting
from looplm.model.context import Context

State = Any
"""Of the core."""
Accumulators = Any
"""A tree of arrays (B, S, ...)."""


class Halting(Protocol):
    """A module; h_BSD is what `Core.read` gives of a state."""

    def init(self, h_BSD: jax.Array) -> Accumulators:
        """Makes the accumulators before the first loop."""

    def admit(self, acc: Accumulators, h_BSD: jax.Array, context: Context) -> tuple[Accumulators, jax.Array | None]:
        """Decides before a loop who is in it. Returns (accumulators, which tokens are there for the others to see
        (B, S); None: all)."""

    def update(
        self, acc: Accumulators, old: State, new: State, h_BSD: jax.Array, context: Context
    ) -> tuple[State, Accumulators]:
        """Takes a loop in, h_BSD being read of the new state. Returns (the state that goes on, accumulators)."""

    def finish(self, acc: Accumulators, h_BSD: jax.Array) -> jax.Array:
        """Gives what coda and head read after the last loop."""

    def left(self, acc: Accumulators) -> jax.Array | None:
        """Says who has left for good, (B, S); None: nobody ever does."""

    def exits(self, acc: Accumulators) -> jax.Array:
        """Says which loop, from 0, was the last of every token, (B, S) int32. Only of rules that let tokens leave."""


class Never(nnx.Module):
    """Nobody leaves before the last loop; adds no operation."""

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
    match config.halting:
        case NeverHalting():
            return Never()
        case OwnHalting() as own:
            return own.build(config, rngs=rngs)
