"""Feeds the steps of a run: while the devices work, a thread reads the next batch and sends it to them."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Self

import jax
import numpy as np

from looplm.data.loader import train_loader
from looplm.data.mixture import Mixture
from looplm.data.window import PADDING
from looplm.metrics.timing import Timekeeper
from looplm.train.batch import Batch
from looplm.train.hooks import Dispatched
from looplm.train.program import Program
from looplm.train.rewind import Batches


class Placed(NamedTuple):
    """A batch on the devices."""

    batch: Batch
    depth: jax.Array
    drawn: np.ndarray
    data: dict[str, float]
    """What has been read by then, and how long it was waited for."""


class Feed:
    """The batches of one step after the other, one read ahead. A context: its end does not wait for the reader, whose
    storage may never answer."""

    def __init__(self, program: Program, mixture: Mixture, batches: Batches, timekeeper: Timekeeper, first_step: int):
        self.program, self.mixture, self.batches, self.timekeeper = program, mixture, batches, timekeeper
        self._rows = batches.read(partial(open_loader, program, mixture), first_step)
        self._reader = ThreadPoolExecutor(1, "batches")
        self._upcoming: Future[Placed]
        self.read_ahead(first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def read_ahead(self, step: int) -> None:
        """Begin to read the batch of a step, the one after the last that was begun."""
        self._upcoming = self._reader.submit(self._place, step)

    def take(self, running: Dispatched | None) -> Placed:
        """Wait for the batch that was begun. running: the step that the devices may be at."""
        self.timekeeper.credit()
        started = time.perf_counter()
        placed = self._upcoming.result()
        placed.data["data/wait_s"] = time.perf_counter() - started
        if running is None or running.output.tokens.is_ready():  # type: ignore[attr-defined]  # not annotated
            self.timekeeper.credit("data_wait")  # the devices had to wait; else it cost nothing
        return placed

    def _place(self, step: int) -> Placed:
        drawn, rows = self.program.depths.draw(step - 1), next(self._rows)
        layout = self.program.batch
        batch, depth = layout.place(rows, drawn), layout.place_drawn(drawn)
        data = self.mixture.progress(self.batches.used_by(step))
        if self.mixture.padding:
            data["data/padding"] = float(np.mean(rows["segments"] == PADDING))
        return Placed(batch, depth, drawn, data)


def open_loader(program: Program, mixture: Mixture, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Return this host's rows of the batches from one on. Raises UserError for a batch that the hosts do not divide."""
    return train_loader(
        mixture,
        start_step=start_step,
        host=program.batch.part,
        num_hosts=program.batch.num_parts,
        prefetch=program.run.data.prefetch_batches,
    )
