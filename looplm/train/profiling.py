"""A profile of some steps, for XProf and TensorBoard: what every device and thread did, and when.

WORKDIR/profile is the folder that they open. The process that writes the metrics writes it, of its own devices.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from looplm.errors import UserError

STEPS = re.compile(r"(\d+):(\d+)")


class Profile:
    """Of the steps first to last, both of them too; of none when `steps` is None.

    Raises UserError unless `steps` reads FIRST:LAST, counted from 1.
    """

    def __init__(self, steps: str | None, folder: Path) -> None:
        self.folder, self.is_on = folder, False
        match = STEPS.fullmatch(steps) if steps is not None else None
        self.first, self.last = (int(match[1]), int(match[2])) if match else (0, 0)
        if steps is not None and not 0 < self.first <= self.last:
            raise UserError(f"--profile {steps}: not FIRST:LAST, two steps of the run counted from 1, e.g. 10:13")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around what dispatches a step."""
        if self.first <= number <= self.last and not self.is_on and jax.process_index() == 0:
            jax.profiler.start_trace(self.folder)
            self.is_on = True
        if not (self.is_on and number <= self.last):
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def is_over(self, number: int) -> bool:
        """Tell whether all that is wanted has run, now that this step has."""
        return self.is_on and number >= self.last

    def write(self) -> None:
        """Write the profile, if one is going on; it may take seconds."""
        if self.is_on:
            self.is_on = False
            jax.profiler.stop_trace()
