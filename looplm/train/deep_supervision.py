"""Deep supervision: rows stay for several optimizer steps, each of which goes on from the state that the one before
left (arXiv 2506.21734, section 2; 2510.04871, section 4.2).

In every step a row runs one segment. It halts after the most segments, or as soon as the sequence gate says so: its
first output above the second, or above 0 where there is none that counts. Some rows, drawn anew every step, may not
halt before a number of segments that is drawn with them. A row that has halted is replaced by the one that comes in its
place.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from looplm.config.schema import DeepSupervision, SequenceGate
from looplm.model.forward import Forward
from looplm.model.loop import select
from looplm.model.output import Output
from looplm.train.batch import Batch

LEAST = 2
"""Segments, of which an exploring row has so many at the least."""


class RowsInWork(NamedTuple):
    """What is kept of a batch; all leaves have its leading dims."""

    rows: dict[str, jax.Array]
    """The rows in work, by their names in `Batch`."""
    state: Any
    """The core's state after the last segment, without gradient."""
    segments_B: jax.Array
    """Segments that a row has behind it, int32."""
    halted_B: jax.Array
    """Which rows make room, bool."""


class Segments:
    """The rules of rows in work; a `Carrying`."""

    def __init__(self, config: DeepSupervision, gate: SequenceGate):
        self.config, self.gate = config, gate

    def empty(self, batch: Batch, state: Any) -> RowsInWork:
        def zeros(leaf: Any, dtype: Any = None) -> jax.Array:
            sharding = None if jax.sharding.get_abstract_mesh().empty else leaf.sharding.spec
            return jnp.zeros(leaf.shape, dtype or leaf.dtype, out_sharding=sharding)

        rows, state = jax.tree.map(zeros, (kept_of(batch), state))
        return RowsInWork(rows, state, zeros(batch.sequence), ~zeros(batch.sequence, bool))

    def rows(self, carry: RowsInWork, micro_batch: Batch) -> Batch:
        return micro_batch._replace(**select(carry.halted_B, kept_of(micro_batch), carry.rows))

    def enter(self, carry: RowsInWork, forward: Forward, key: jax.Array) -> Forward:
        ends_B = self._segments(carry) >= self.config.max_segments
        return replace(forward, start=carry.state, fresh_B=carry.halted_B, ends_B=ends_B)

    def leave(self, carry: RowsInWork, rows: Batch, output: Output, key: jax.Array) -> RowsInWork:
        state, q_BQ = jax.lax.stop_gradient((output.state, output.sequence_gate_BQ))
        assert q_BQ is not None, "config.check requires a sequence gate"
        segments_B = self._segments(carry)
        wants_B = q_BQ[:, 0] > (q_BQ[:, 1] if self.gate.weighs_going_on else 0)
        wants_B &= segments_B >= self._least(key, rows.sequence)
        # A row that has broken would come back for ever.
        broken_B = ~jnp.all(jnp.stack([finite_rows(leaf) for leaf in jax.tree.leaves(state)]), axis=0)
        halted_B = (segments_B >= self.config.max_segments) | wants_B | broken_B
        return RowsInWork(kept_of(rows), state, segments_B, halted_B)

    def ended(self, carry: RowsInWork) -> jax.Array:
        return carry.halted_B

    def numbers(self, carry: RowsInWork) -> dict[str, jax.Array]:
        return {"carry/segments": carry.segments_B}

    def _segments(self, carry: RowsInWork) -> jax.Array:
        """The number of this segment of every row, from 1."""
        return jnp.where(carry.halted_B, 0, carry.segments_B) + 1

    def _least(self, key: jax.Array, sequence_B: jax.Array) -> jax.Array:
        """Before which segment a row may not halt: a function of the step and of its place in the global batch."""
        most = self.config.max_segments

        def draw(sequence: jax.Array) -> jax.Array:
            explores, least = jax.random.split(jax.random.fold_in(key, sequence))
            drawn = jax.random.randint(least, (), min(LEAST, most), most + 1)
            return jnp.where(jax.random.uniform(explores) < self.config.exploration, drawn, 0)

        return jax.vmap(draw)(sequence_B)


def kept_of(batch: Batch) -> dict[str, jax.Array]:
    """The leaves of a batch that stay with a row. Its place in the batch and its depth are of the step."""
    of_the_step = ("sequence", "depth")
    return {name: leaf for name, leaf in batch._asdict().items() if leaf is not None and name not in of_the_step}


def finite_rows(leaf: jax.Array) -> jax.Array:
    """Which rows hold nothing but numbers, (B,)."""
    return jnp.all(jnp.isfinite(leaf), axis=range(1, leaf.ndim))
