"""A memory that goes from step to step: what entered every layer at the last tokens of every row (arXiv 1901.02860).

Row b of a step goes on where row b of the step before ended (`data.streams`), and a position above 0 at its first token
says that the document does, too. Training and evaluation keep it in the same way.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from looplm.config.schema import Memory as MemoryConfig
from looplm.config.schema import Model
from looplm.model.forward import Forward
from looplm.model.memory import Memory, newest
from looplm.model.output import Output
from looplm.sharding.rules import activation_spec


class Rows(Protocol):
    """What is asked of the rows of a batch, int32."""

    @property
    def segments(self) -> jax.Array:
        """Number of the document in the row, (..., B, S)."""

    @property
    def positions(self) -> jax.Array:
        """Position in the document, (..., B, S)."""

    @property
    def sequence(self) -> jax.Array:
        """Number of the row, (..., B)."""


AnyRows = TypeVar("AnyRows", bound=Rows)


class Kept(NamedTuple):
    """What is kept of the rows; all leaves have the leading dims of a batch."""

    states_BRLMD: jax.Array
    """What entered every layer, by loop; before it what older tokens were compressed to, if they are."""
    open_BM: jax.Array
    """Which of these places are of the document that the row was in when it ended, bool."""


@dataclass(frozen=True)
class Remembered:
    """The rules of a memory; in training a `Carrying`."""

    memory: MemoryConfig
    loops: int
    layers: int
    """How many loops, and layers of each, remember."""

    def empty(self, batch: Rows, state: Any) -> Kept:
        (leaf,) = jax.tree.leaves(state)
        M, rows = self.memory.compressed_length + self.memory.length, batch.sequence.shape

        def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
            # Whole on every device but for the rows.
            axes = ("one", "batch") if len(rows) == 2 else ("batch",)
            spec = activation_spec(*axes, *("one",) * (len(shape) - len(rows)))
            return jnp.zeros(shape, dtype, out_sharding=spec)

        states = zeros((*rows, self.loops, self.layers, M, leaf.shape[-1]), leaf.dtype)
        return Kept(states, zeros((*rows, M), bool))

    def rows(self, carry: Kept, micro_batch: AnyRows) -> AnyRows:
        return micro_batch

    def enter(self, carry: Kept, forward: Forward, key: jax.Array) -> Forward:
        reporting = replace(forward.context.reporting, memory=True)
        goes_on_B1 = forward.context.positions_BS[:, :1] > 0
        memory = Memory(jnp.moveaxis(carry.states_BRLMD, 0, 2), carry.open_BM & goes_on_B1)
        return replace(forward, context=replace(forward.context, reporting=reporting), memory=memory)

    def leave(self, carry: Kept, rows: Rows, output: Output, key: jax.Array) -> Kept:
        report, compressed = output.reports["block"], self.memory.compressed_length
        assert report.memory_BSD is not None, "see enter"
        older_BRLCD, states_BRLMD = jnp.split(carry.states_BRLMD, [compressed], axis=3)
        states_BRLMD = newest(states_BRLMD, self._of_rows(report.memory_BSD), axis=3)
        last_B1, goes_on_B1 = rows.segments[:, -1:], rows.positions[:, :1] > 0
        # What was open before stays open where the row is in one document from end to end.
        still_BM = carry.open_BM & goes_on_B1 & (rows.segments[:, :1] == last_B1)
        older_BC, leaving_BM = jnp.split(still_BM, [compressed], axis=1)
        open_BM = newest(leaving_BM, rows.segments == last_B1, axis=1)
        if report.compressed_BnD is None:
            return Kept(states_BRLMD, open_BM)
        new_BRLnD, (batch, length) = self._of_rows(report.compressed_BnD), rows.segments.shape
        # A place is of a document if all its tokens are.
        of_one_Bn = jnp.all(leaving_BM[:, :length].reshape(batch, new_BRLnD.shape[3], -1), axis=2)
        older = newest(older_BRLCD, new_BRLnD, axis=3), newest(older_BC, of_one_Bn, axis=1)
        return Kept(jnp.concatenate([older[0], states_BRLMD], axis=3), jnp.concatenate([older[1], open_BM], axis=1))

    def _of_rows(self, reported_TBLSD: jax.Array) -> jax.Array:
        """Take the loops that remember, and put the rows first."""
        return jax.lax.stop_gradient(jnp.moveaxis(reported_TBLSD[-self.loops :], 0, 1))

    def ended(self, carry: Kept) -> jax.Array:
        return jnp.zeros(carry.open_BM.shape[:-1], bool)

    def numbers(self, carry: Kept) -> dict[str, jax.Array]:
        return {}


def remembered_of(model: Model, num_loops: int) -> Remembered | None:
    """Return the rules of a model's memory in a pass of so many loops; None where it has none."""
    if model.memory is None or not model.memory_length:
        return None
    loops = 1 if model.memory.loops == "last" else num_loops
    return Remembered(model.memory, loops=loops, layers=model.block_layers)
