"""The driver that runs every recurrence: a detached prefix of loops, then a trained suffix.

The number of loops is traced, so one compiled program serves every depth: the prefix is a `fori_loop` under
stop-gradient, the suffix a `scan` of static length whose surplus leading iterations are skipped. The driver knows no
halting, cache or loss, and a step may itself run loops.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from looplm.model.depth import Depth, Loop
from looplm.ops.scopes import DETACHED, WINDOW, done

Tree = Any
Remat = Literal["none", "layer", "loop", "names", "offload"]
Step = Callable[[Tree, Tree, Tree, Loop], tuple[Tree, Tree]]
"""One loop: (parameters, carry, inputs, loop) -> (carry, report)."""


class Ran(NamedTuple):
    """What the loops gave."""

    carry: Tree
    """The carry after the last loop."""
    kept: Tree
    """What was kept of the carry after every iteration of the window; a skipped one repeats the carry that it got."""
    reports: Tree
    """The report of every iteration of the window; zeros where it was skipped."""


def run_loops(
    step: Step,
    parameters: Tree,
    carry: Tree,
    inputs: Tree,
    depth: Depth,
    *,
    per_loop: Tree = None,
    keep: Callable[[Tree], Tree] = lambda carry: None,
    remat: Remat = "none",
    unroll: bool = False,
    numbered: bool = False,
) -> Ran:
    """Apply `carry, report = step(parameters, carry, inputs, loop)` as many times as `depth` says.

    Args:
        step: must give a carry of the structure, shapes and shardings that it gets.
        parameters, inputs: the same for every loop; their gradient comes from the trained loops only.
        per_loop: a tree whose leading dim counts loops; loop number n gets slice n as `Loop.own`, or the last slice
            where there are fewer.
        keep: selects what is kept of the carry after every iteration of the window.
        remat: `loop` and `names` recompute a trained loop in the backward pass and keep only its first carry;
            `offload` also keeps that on the host.
        unroll: write the trained loops out in the program.
        numbered: tell every loop that is written out its number at trace time, `Loop.known`, if the depth is known.
    """
    total_B = jnp.atleast_1d(depth.num_loops)
    if not (isinstance(depth.num_detached, int) and depth.num_detached == 0):
        # The gradient is stopped at the inputs of the prefix, not only at its output: else JAX would save its values.
        frozen_parameters, frozen_inputs, frozen_tables = jax.lax.stop_gradient((parameters, inputs, per_loop))
        detached_B = jnp.atleast_1d(depth.num_detached)

        def advance(t: jax.Array, carry: Tree) -> Tree:
            loop = Loop(jnp.atleast_1d(t), total_B, slice_of_loop(frozen_tables, t))
            new, _ = step(frozen_parameters, carry, frozen_inputs, loop)
            return new if detached_B.size == 1 else select(t < detached_B, new, carry)

        with _detached_mark(depth):
            advanced = jax.lax.fori_loop(0, jnp.max(detached_B), advance, jax.lax.stop_gradient(carry))
        # With a drawn count of 0 the first carry keeps its gradient.
        always = isinstance(depth.num_detached, int)
        carry = advanced if always else select(detached_B > 0, advanced, carry)

    def iterate(carry: Tree, xs: tuple, known: int | None = None) -> tuple[Tree, tuple[Tree, Tree]]:
        active, number_B, own = xs

        def run(carry: Tree) -> tuple[Tree, Tree]:
            return step(parameters, carry, inputs, Loop(number_B, total_B, own, known=known))

        if active is None:
            carry, report = run(carry)
        elif active.size == 1:
            # A cond and not a where: an iteration that is skipped costs nothing.
            carry, report = jax.lax.cond(active[0], run, lambda carry: (carry, blank_report(run, carry)), carry)
        else:
            new, report = run(carry)
            carry = select(active, new, carry)
        return carry, (keep(carry), report)

    def recomputed(iterate: Callable) -> Callable:
        if remat in ("loop", "names"):
            return jax.checkpoint(iterate)
        return with_carries_on_host(iterate) if remat == "offload" else iterate

    body = recomputed(iterate)
    xs = (depth.active_RB, depth.numbers_RB, slices_of_window(per_loop, depth))
    with _window_mark(depth):
        if unroll and numbered and depth.known_numbers is not None:
            bodies = [recomputed(partial(iterate, known=known)) for known in depth.known_numbers]
            carry, (kept, reports) = one_by_one(bodies, carry, xs)
        else:
            carry, (kept, reports) = (written_out if unroll else jax.lax.scan)(body, carry, xs)
    return Ran(carry, kept, reports)


def _detached_mark(depth: Depth) -> AbstractContextManager:
    if depth.expected is not None:
        return done(depth.expected[1])
    return done(depth.num_detached) if isinstance(depth.num_detached, int) else jax.named_scope(DETACHED)


def _window_mark(depth: Depth) -> AbstractContextManager:
    return jax.named_scope(WINDOW) if depth.expected is None else done(depth.expected[0] / depth.window)


def select(chosen_B: jax.Array, new: Tree, old: Tree) -> Tree:
    """Take `new` for the sequences that are chosen, else `old`; chosen_B is (B,), or (1,) for all."""

    def leaf(new: jax.Array, old: jax.Array) -> jax.Array:
        shape = () if chosen_B.size == 1 else (-1, *(1,) * (new.ndim - 1))
        return jnp.where(chosen_B.reshape(shape), new, old)

    return jax.tree.map(leaf, new, old)


def slice_of_loop(tables: Tree, t: jax.Array) -> Tree:
    """Cut one loop's slice out of tables over loops; a loop beyond their end gets the last one."""
    return jax.tree.map(lambda table: jax.lax.dynamic_index_in_dim(table, t, keepdims=False), tables)


def slices_of_window(tables: Tree, depth: Depth) -> Tree:
    """Cut the slices of all loops of the window in one gather a table, so that its gradient is scattered once."""

    def rows(table: jax.Array) -> jax.Array:
        numbers_R = jnp.clip(depth.numbers_RB[:, 0], 0, table.shape[0] - 1)
        if jax.sharding.get_abstract_mesh().empty:
            return table.at[numbers_R].get()
        # JAX 0.10 does not infer the sharding of rows of an array that is marked `reduced`.
        return table.at[numbers_R].get(out_sharding=jax.typeof(table).sharding.spec)

    return jax.tree.map(rows, tables)


def blank_report(run: Callable[[Tree], tuple[Tree, Tree]], carry: Tree) -> Tree:
    """Make the report of a step that does not run: zeros, sharded like the report that it would have made."""

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        sharding = None if jax.sharding.get_abstract_mesh().empty else leaf.sharding
        return jnp.zeros(leaf.shape, leaf.dtype, out_sharding=sharding)

    return jax.tree.map(zeros, jax.eval_shape(run, carry)[1])


def written_out(body: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """Do what `jax.lax.scan` does, in Python. Its own `unroll` calls one function again and again in JAX 0.10.2, and
    where that gives partial sums (of gradients) the TPU compiler refuses the program: "unreduced axes mismatch" (JAX
    0.12 does not)."""
    return one_by_one([body] * jax.tree.leaves(xs)[0].shape[0], carry, xs)


def one_by_one(bodies: Sequence[Callable[[Tree, Tree], tuple[Tree, Tree]]], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """Do the same where every iteration has a body of its own."""
    kept = []
    for i, body in enumerate(bodies):
        carry, one = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        kept.append(one)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def with_carries_on_host(iterate: Callable[[Tree, Tree], tuple[Tree, Tree]]) -> Callable[[Tree, Tree], tuple]:
    """Recompute a loop in the backward pass from its first carry, which waits in host memory."""
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["loop_carry"],
        offload_src="device",
        offload_dst="pinned_host",
    )

    def named(carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
        return iterate(jax.tree.map(lambda leaf: checkpoint_name(leaf, "loop_carry"), carry), xs)

    return jax.checkpoint(named, policy=policy)
