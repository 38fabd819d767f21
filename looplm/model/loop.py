"""The driver that runs every looped model: a detached prefix of loops, then a trained suffix.

The number of loops is traced, so one compiled program serves every depth: the prefix is a `fori_loop` under
stop-gradient, the suffix a `scan` of static length whose surplus leading iterations are skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Tree = Any


@dataclass(frozen=True)
class Depth:
    """How many loops run, and through how many of them the gradient flows; the same for all sequences, or (B,)."""

    window: int
    """Static length of the trained suffix: the most loops that can carry a gradient."""
    num_trained: int | jax.Array | None = None
    """Loops that carry a gradient, 1..window; None means the whole window. int32, () or (B,)."""
    num_detached: int | jax.Array = 0
    """Loops without gradient that run before them. int32, () or (B,)."""

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
        """Number of every iteration of the window among all loops, from 0: int32 (window, 1), or (window, B)."""
        return jnp.arange(self.window)[:, None] + jnp.atleast_1d(self.num_loops - self.window)

    @property
    def num_loops(self) -> int | jax.Array:
        """All loops."""
        return self.num_detached + (self.window if self.num_trained is None else self.num_trained)


def run_loops(
    step: Callable[[Tree, Tree, Tree, Tree, jax.Array], tuple[Tree, Tree]],
    parameters: Tree,
    state: Tree,
    inputs: Tree,
    depth: Depth,
    *,
    collect: Callable[[Tree], Tree],
    per_loop: Tree = None,
    remat: Literal["none", "layer", "loop", "names", "offload"],
    unroll: bool,
) -> tuple[Tree, Tree, Tree]:
    """Applies `state = step(parameters, state, inputs, per_loop[t], t)` so many times as `depth` says.

    Args:
        step: returns (next state, what replaces this loop's entry of `per_loop`); t is the loop's number from 0, (1,)
            or (B,).
        parameters, inputs: the same for every loop; get their gradient from the trained loops only.
        collect: maps the state after a trained loop to what is kept of it.
        per_loop: a tree with leading dim `window` (a cache), or None.
        remat: `loop` and `names` recompute a trained loop in the backward pass and keep only its first state;
            `offload` also keeps that on the host.
        unroll: write the trained loops out in the program.

    Returns:
        (last state, collected with a leading dim `window`, per_loop). Entries of skipped iterations repeat the state
        that they got; `depth.active_RB` tells them apart.
    """
    if not (isinstance(depth.num_detached, int) and depth.num_detached == 0):
        # The inputs of the prefix are stopped, not only its output: nothing of it is saved for a backward pass.
        frozen = jax.lax.stop_gradient((parameters, inputs))
        detached_B = jnp.atleast_1d(depth.num_detached)

        def advance(t: jax.Array, state: Tree) -> Tree:
            new = step(frozen[0], state, frozen[1], None, jnp.atleast_1d(t))[0]
            return new if detached_B.size == 1 else select(t < detached_B, new, state)

        advanced = jax.lax.fori_loop(0, jnp.max(detached_B), advance, jax.lax.stop_gradient(state))
        # With a drawn count of 0 the first state keeps its gradient.
        always = isinstance(depth.num_detached, int)
        state = advanced if always else select(detached_B > 0, advanced, state)

    def iterate(state: Tree, xs: tuple[Tree, Tree, jax.Array]) -> tuple[Tree, tuple[Tree, Tree]]:
        active, loop_data, t_B = xs
        if active is None:
            state, loop_data = step(parameters, state, inputs, loop_data, t_B)
        elif active.size == 1:
            # cond and not where: an iteration that is skipped costs nothing.
            state, loop_data = jax.lax.cond(
                active[0], lambda s, d: step(parameters, s, inputs, d, t_B), lambda s, d: (s, d), state, loop_data
            )
        else:
            assert loop_data is None, "sequences of different depth have no cache"
            state = select(active, step(parameters, state, inputs, None, t_B)[0], state)
        return state, (collect(state), loop_data)

    body: Callable = iterate
    if remat in ("loop", "names"):
        body = jax.checkpoint(iterate)
    elif remat == "offload":
        body = _with_states_on_host(iterate)
    xs = (depth.active_RB, per_loop, depth.numbers_RB)
    state, (collected, per_loop) = (_written_out if unroll else jax.lax.scan)(body, state, xs)
    return state, collected, per_loop


def _written_out(body: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """`jax.lax.scan` in Python. Its own `unroll` calls one function again and again in JAX 0.10.2, and where that gives
    partial sums (of gradients) the TPU compiler refuses the program: "unreduced axes mismatch" (JAX 0.12 does not)."""
    kept = []
    for i in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, one = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        kept.append(one)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def _with_states_on_host(iterate: Callable[[Tree, Tree], tuple[Tree, Tree]]) -> Callable[[Tree, Tree], tuple]:
    """Recomputes the loop in the backward pass from its first state, which waits in host memory."""
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["loop_state"],
        offload_src="device",
        offload_dst="pinned_host",
    )

    def named(state: Tree, xs: Tree) -> tuple[Tree, Tree]:
        return iterate(jax.tree.map(lambda leaf: checkpoint_name(leaf, "loop_state"), state), xs)

    return jax.checkpoint(named, policy=policy)


def select(chosen_B: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` for the sequences that are chosen, else `old`; chosen_B is (B,), or (1,) for all."""

    def leaf(new: jax.Array, old: jax.Array) -> jax.Array:
        shape = () if chosen_B.size == 1 else (-1, *(1,) * (new.ndim - 1))
        return jnp.where(chosen_B.reshape(shape), new, old)

    return jax.tree.map(leaf, new, old)
