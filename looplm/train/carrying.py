"""What a run keeps of a batch from one optimizer step to the next: rows in work, and where they have come to, or
a memory of what they read.

It is part of the train state, split over the devices like the batch, saved and restored with parameters and optimizer
state. What a step computes stays a function of the step's number and of the state that it gets.
"""

from typing import Any, Protocol

import jax

from looplm.config.schema import DeepSupervision, NoCarry, Run
from looplm.model.forward import Forward
from looplm.model.output import Output
from looplm.model.remembered import remembered_of
from looplm.train.batch import Batch
from looplm.train.deep_supervision import Segments


class Carrying(Protocol):
    """What is kept, micro-batch by micro-batch: trees of arrays (B, ...)."""

    def empty(self, batch: Batch, state: Any) -> Any:
        """Make what there is before the first step; nothing of it is ever read.

        Args:
            batch: a batch, or a micro-batch, whose shapes and shardings count.
            state: the core's state after a pass over it, shapes and shardings alone.
        """

    def rows(self, carry: Any, micro_batch: Batch) -> Batch:
        """Return the rows in work: of those that come, the ones that there is room for."""

    def enter(self, carry: Any, forward: Forward, key: jax.Array) -> Forward:
        """Return the pass over the rows in work, from where they have come to. key: random key of the step."""

    def leave(self, carry: Any, rows: Batch, output: Output, key: jax.Array) -> Any:
        """Return what the next step gets."""

    def ended(self, carry: Any) -> jax.Array:
        """Return which rows the next step replaces, (B,) bool."""

    def numbers(self, carry: Any) -> dict[str, jax.Array]:
        """Return numbers of every row that are logged for those that end, by metric name, (B,)."""


def build_carrying(run: Run) -> Carrying | None:
    """Make what the run names; None where nothing is kept."""
    match run.carry:
        case NoCarry():
            return remembered_of(run.model, run.loop.num_loops)
        case DeepSupervision() as config:
            assert run.model.sequence_gate is not None, "config.check requires a sequence gate"
            return Segments(config, run.model.sequence_gate)
