"""The driver that runs every looped model: a detached prefix of loops, then a trained suffix.

The number of loops is traced, so one compiled program serves every depth: the prefix is a `fori_loop` under
stop-gradient, the suffix a `scan` of static length whose surplus leading iterations are skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


@dataclass(frozen=True)
class Depth:
    """How many loops run, and through how many of them the gradient flows."""

    window: int
    """Static length of the trained suffix: the most loops that can carry a gradient."""
    num_trained: int | jax.Array | None = None
    """Loops that carry a gradient, 1..window; None means the whole window."""
    num_detached: int | jax.Array = 0
    """Loops without gradient that run before them."""

    @property
    def always_full(self) -> bool:
        """Whether it is known at trace time that no iteration of the window is skipped."""
        return self.num_trained is None or (isinstance(self.num_trained, int) and self.num_trained == self.window)

    @property
    def active_R(self) -> jax.Array | None:
        """Which iterations of the window run, bool (window,); None when all of them do."""
        if self.num_trained is None or self.always_full:
            return None
        return jnp.arange(self.window) >= self.window - self.num_trained


def run_loops(
    step: Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]],
    parameters: Tree,
    state: Tree,
    inputs: Tree,
    depth: Depth,
    *,
    collect: Callable[[Tree], Tree],
    per_loop: Tree = None,
    remat: bool,
    unroll: bool,
) -> tuple[Tree, Tree, Tree]:
    """Applies `state = step(parameters, state, inputs, per_loop[t])` so many times as `depth` says.

    Args:
        step: returns (next state, what replaces this loop's entry of `per_loop`).
        parameters, inputs: the same for every loop; get their gradient from the trained loops only.
        collect: maps the state after a trained loop to what is kept of it.
        per_loop: a tree with leading dim `window` (a cache), or None.
        remat: recompute a trained loop in the backward pass and keep only its first state.
        unroll: write the trained loops out in the program.

    Returns:
        (last state, collected with a leading dim `window`, per_loop). Entries of skipped iterations repeat the state
        that they got; `depth.active_R` tells them apart.
    """
    if not (isinstance(depth.num_detached, int) and depth.num_detached == 0):
        # The inputs of the prefix are stopped, not only its output: nothing of it is saved for a backward pass.
        frozen = jax.lax.stop_gradient((parameters, inputs))
        advanced = jax.lax.fori_loop(
            0, depth.num_detached, lambda _, s: step(frozen[0], s, frozen[1], None)[0], jax.lax.stop_gradient(state)
        )
        # With no detached loop the first state keeps its gradient.
        state = jax.tree.map(lambda new, old: jnp.where(depth.num_detached > 0, new, old), advanced, state)

    def iterate(state: Tree, xs: tuple[Tree, Tree]) -> tuple[Tree, tuple[Tree, Tree]]:
        active, loop_data = xs
        if active is None:
            state, loop_data = step(parameters, state, inputs, loop_data)
        else:
            # cond and not where: an iteration that is skipped costs nothing.
            state, loop_data = jax.lax.cond(
                active, lambda s, d: step(parameters, s, inputs, d), lambda s, d: (s, d), state, loop_data
            )
        return state, (collect(state), loop_data)

    state, (collected, per_loop) = jax.lax.scan(
        jax.checkpoint(iterate) if remat else iterate,
        state,
        (depth.active_R, per_loop),
        length=depth.window,
        unroll=depth.window if unroll else 1,
    )
    return state, collected, per_loop
