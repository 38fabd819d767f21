"""`experts.jsonl`: how many choices every expert got, in every loop and layer, every so many steps.

A line has `step`, `loops` (numbers from 1 of the block's loops that are listed; empty where sequences differ in depth)
and, for each section with experts, `moe/load/prelude`, `moe/load/block`, `moe/load/coda`: lists over visits (those of
the block are its loops), layers (those with experts) and experts. For experts of attentions, `attention/` in place of
`moe/`: the experts of the first head's values, of the next one's, ..., then those of the outputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from looplm.metrics.routers import BRANCHES, LOAD
from looplm.metrics.sinks import JsonlSink, read_metrics

BLOCK = "block"


class LoadLog:
    """Makes the file with its first line, so that a dense model has none; see `JsonlSink` for a resume."""

    def __init__(self, path: Path, *, resume_step: int, every_steps: int, last_step: int) -> None:
        self._path, self._resume_step = path, resume_step
        self._every_steps, self._last_step = every_steps, last_step
        self._lines = self._opened() if path.exists() else None

    def write(self, step: int, metrics: Mapping[str, np.ndarray], drawn: np.ndarray) -> None:
        """Takes what a step returned, and the loops that it ran; see `train.metrics.readable`."""
        loads = {name: load for name, load in metrics.items() if name.startswith(tuple(f"{b}{LOAD}" for b in BRANCHES))}
        if not loads or not self._every_steps or (step % self._every_steps and step not in (1, self._last_step)):
            return
        row: dict[str, Any] = {"loops": []}
        if drawn.ndim == 1:
            detached, trained = (int(n) for n in drawn)
            row["loops"] = list(range(detached + 1, detached + trained + 1))
            loads = {name: load[-trained:] if name.endswith(BLOCK) else load for name, load in loads.items()}
        self._lines = self._lines or self._opened()
        self._lines.write(step, row | {name: load.astype(np.int64).tolist() for name, load in loads.items()})

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _opened(self) -> JsonlSink:
        return JsonlSink(self._path, resume_step=self._resume_step, lists=True)


def read_loads(path: Path) -> list[dict[str, Any]]:
    """The lines of the file, each load as an array (visits, layers, experts); none where there is no file."""
    if not path.is_file():
        return []
    rows = read_metrics(path, lists=True)
    return [{name: np.array(value) if LOAD in name else value for name, value in row.items()} for row in rows]
