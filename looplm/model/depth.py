"""How many loops run, and what a step is told about the loop that it is."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Depth:
    """How many loops run, and through how many of them the gradient flows; the same for all sequences, or (B,)."""

    window: int = field(metadata={"static": True})
    """Static length of the trained suffix: the most loops that can carry a gradient."""
    num_trained: int | jax.Array | None = None
    """Loops that carry a gradient, 1..window; None means the whole window. int32, () or (B,)."""
    num_detached: int | jax.Array = 0
    """Loops without gradient that run before them. int32, () or (B,)."""
    expected: tuple[float, float] | None = field(default=None, metadata={"static": True})
    """How many loops are trained and detached on average, of loops inside of another; FLOPs count them. None: the
    numbers are static, or those of the step."""

    @property
    def always_full(self) -> bool:
        """Whether it is known at trace time that no iteration of the window is skipped."""
        return self.num_trained is None or (isinstance(self.num_trained, int) and self.num_trained == self.window)

    @property
    def active_RB(self) -> jax.Array | None:
        """Which iterations of the window run: bool (window, 1), or (window, B) where sequences differ; None when all
        of them do."""
        if self.num_trained is None or self.always_full:
            return None
        skipped = jnp.atleast_1d(self.window - self.num_trained)
        return jnp.arange(self.window)[:, None] >= skipped[None, :]

    @property
    def numbers_RB(self) -> jax.Array:
        """Number of every iteration of the window among all loops, from 0: int32 (window, 1), or (window, B). Negative
        for those that are skipped."""
        return jnp.arange(self.window)[:, None] + jnp.atleast_1d(self.num_loops - self.window)

    @property
    def known_numbers(self) -> range | None:
        """The same numbers, where they are known at trace time and every iteration runs."""
        if not (self.always_full and isinstance(self.num_detached, int)):
            return None
        return range(self.num_detached, self.num_detached + self.window)

    @property
    def num_loops(self) -> int | jax.Array:
        """How many loops run, with and without gradient: int, or int32 () or (B,)."""
        return self.num_detached + (self.window if self.num_trained is None else self.num_trained)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loop:
    """What a step is told about the loop that it is."""

    number_B: jax.Array
    """Number of the loop, from 0, int32: (1,) for all sequences, or (B,) where they differ."""
    total_B: jax.Array
    """How many loops there are, int32 (1,) or (B,)."""
    own: Any = None
    """The slice of `per_loop` that belongs to this loop; see `run_loops`."""
    call: int | jax.Array = 0
    """Number of the call of a block in this loop, from 0, int32 ()."""
    known: int | None = field(default=None, metadata={"static": True})
    """The number once more, where the program is written for this loop alone."""


def once() -> Loop:
    """Return the loop of a stack that runs once, such as the prelude: number 0 of 1."""
    return Loop(jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32))
