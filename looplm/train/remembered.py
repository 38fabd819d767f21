"""A memory that goes from step to step: what entered every layer at the last tokens of every row (arXiv 1901.02860).

Row b of a step goes on where row b of the step before ended (`data.order=streams`), and a position above 0 at its first
token says that the document does, too.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.config.schema import Memory as MemoryConfig
from looplm.model.forward import Forward
from looplm.model.memory import Memory, newest
from looplm.model.output import Output
from looplm.sharding.rules import activation_spec
from looplm.train.batch import Batch


class Kept(NamedTuple):
    """What is kept of the rows; all leaves have the leading dims of a batch."""

    states_BRLMD: jax.Array
    """What entered every layer, by loop."""
    open_BM: jax.Array
    """Which of these tokens are of the document that the row was in when it ended, bool."""


class Remembered:
    """The rules of a memory; a `Carrying`. loops, layers: how many of them remember."""

    def __init__(self, memory: MemoryConfig, *, loops: int, layers: int):
        self.memory, self.loops, self.layers = memory, loops, layers

    def empty(self, batch: Batch, state: Any) -> Kept:
        (leaf,) = jax.tree.leaves(state)
        M, rows = self.memory.length, batch.sequence.shape

        def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
            # Whole on every device but for the rows.
            axes = ("one", "batch") if len(rows) == 2 else ("batch",)
            spec = activation_spec(*axes, *("one",) * (len(shape) - len(rows)))
            return jnp.zeros(shape, dtype, out_sharding=spec)

        states = zeros((*rows, self.loops, self.layers, M, leaf.shape[-1]), leaf.dtype)
        return Kept(states, zeros((*rows, M), bool))

    def rows(self, carry: Kept, micro_batch: Batch) -> Batch:
        return micro_batch

    def enter(self, carry: Kept, forward: Forward, key: jax.Array) -> Forward:
        reporting = replace(forward.context.reporting, memory=True)
        goes_on_B1 = forward.context.positions_BS[:, :1] > 0
        memory = Memory(jnp.moveaxis(carry.states_BRLMD, 0, 2), carry.open_BM & goes_on_B1)
        return replace(forward, context=replace(forward.context, reporting=reporting), memory=memory)

    def leave(self, carry: Kept, rows: Batch, output: Output, key: jax.Array) -> Kept:
        entered_TBLSD = output.reports["block"].memory_BSD
        assert entered_TBLSD is not None, "see enter"
        entered_BRLSD = jnp.moveaxis(entered_TBLSD[-self.loops :], 0, 1)
        states_BRLMD = newest(carry.states_BRLMD, jax.lax.stop_gradient(entered_BRLSD), axis=3)
        last_B1, goes_on_B1 = rows.segments[:, -1:], rows.positions[:, :1] > 0
        # What was open before stays open where the row is in one document from end to end.
        still_BM = carry.open_BM & goes_on_B1 & (rows.segments[:, :1] == last_B1)
        return Kept(states_BRLMD, newest(still_BM, rows.segments == last_B1, axis=1))

    def ended(self, carry: Kept) -> jax.Array:
        return jnp.zeros(carry.open_BM.shape[:-1], bool)

    def numbers(self, carry: Kept) -> dict[str, jax.Array]:
        return {}
