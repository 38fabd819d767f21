"""Which batch a step reads, in a run that has passed some over.

A rewind goes back to a checkpoint and leaves out the batches that were read since (arXiv 2204.02311, 5.1). What was
left out is kept among the run's events, so the batch of a step is a function of the step again: a resume reads on at
the same place, from whichever checkpoint.
"""

from collections.abc import Callable, Iterator
from typing import Any

from looplm.metrics.events import Events

REWIND = "rewind"


class Batches:
    """The order of batches. Counted from 0; steps are counted from 1."""

    def __init__(self, events: Events):
        self.events = events
        self.num_rewinds = 0
        self._passed_over: list[tuple[int, int]] = []
        """(first batch, how many): ascending, apart from each other."""
        for event in events.read(REWIND):
            self._leave_out(int(event["after"]), int(event["batches"]))

    def of(self, step: int) -> int:
        """The batch of a step."""
        batch = step - 1
        for first, count in self._passed_over:
            batch += count if batch >= first else 0
        return batch

    def used_by(self, step: int) -> int:
        """How many batches were read or passed over when a step is done."""
        return self.of(step) + 1

    def pass_over(self, after: int, last: int) -> int:
        """After step `after` leave out the batches of steps up to `last`; returns how many. On disk when it returns."""
        batches = self.of(last) - self.of(after + 1) + 1
        self.events.add(REWIND, after=after, batches=batches)
        self._leave_out(after, batches)
        return batches

    def _leave_out(self, after: int, batches: int) -> None:
        first = self.of(after + 1)
        # Who goes back before an earlier rewind has what that one left out within what is left out now.
        apart = [(start, count) for start, count in self._passed_over if not first <= start < first + batches]
        self._passed_over = sorted([*apart, (first, batches)])
        self.num_rewinds += 1

    def read(self, loader: Callable[[int], Iterator[Any]], first: int) -> Iterator[Any]:
        """Yields what `loader`, which reads on from a batch, gives for steps first, first + 1, ..."""
        step, rows, upcoming = first, iter(()), -1
        while True:
            if self.of(step) != upcoming:
                upcoming = self.of(step)
                rows = loader(upcoming)
            yield next(rows)
            step, upcoming = step + 1, upcoming + 1
