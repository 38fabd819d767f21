"""When a run is saved: by step, by time, and at its end."""

import time
from collections.abc import Callable

from looplm.config.schema import Checkpoint
from looplm.distributed.exchange import first_of_all

ASK_EVERY = 10
"""Several processes compare their clocks at every so many steps only: it makes them wait for each other."""


class SaveSchedule:
    def __init__(self, config: Checkpoint, num_steps: int, clock: Callable[[], float] = time.monotonic):
        self.config, self.num_steps, self.clock = config, num_steps, clock
        self._last = clock()

    def is_due(self, step: int, num_processes: int = 1) -> bool:
        """The same on all processes, which must all ask, once for every step."""
        every = self.config.every_steps
        if step == self.num_steps or (every is not None and step % every == 0):
            return True
        if self.config.every_minutes is None or (num_processes > 1 and step % ASK_EVERY):
            return False
        is_late = self.clock() - self._last >= 60 * self.config.every_minutes
        return bool(first_of_all("due" if is_late else "")) if num_processes > 1 else is_late

    def saved(self) -> None:
        """Time is counted from here."""
        self._last = self.clock()

    def next_one(self, step: int) -> str:
        """For a message, after a save at `step` has failed."""
        if step >= self.num_steps:
            return "it was the last one of the run"
        every = self.config.every_steps
        later = self.num_steps if every is None else min(self.num_steps, (step // every + 1) * every)
        timed = self.config.every_minutes
        return f"training goes on, the next try is at step {later}" + (
            f", or in {timed:g} minutes" if timed is not None else ""
        )
