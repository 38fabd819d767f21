"""`experts.jsonl`: how many choices every expert got, in every loop and layer, every so many steps.

A line has `step`, `loops` (numbers from 1 of the block's loops that are listed; empty where sequences differ in depth)
and, for each section with experts, `moe/load/prelude`, `moe/load/block`, `moe/load/coda`: lists over visits (those of
the block are its loops), layers (those with experts) and experts. For experts of attentions, `attention/` in place of
`moe/`: the experts of the first head's values, of the next one's, ..., then those of the outputs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from looplm.metrics.sinks import JsonlSink, read_metrics

if TYPE_CHECKING:  # the report uses this file, and starts without jax
    from looplm.metrics.step import Routers

LOAD = "/load/"
"""Between `moe` or `attention` and the section, in the names of a line."""


class LoadLog:
    """Makes the file with its first line, so that a dense model has none; see `JsonlSink` for a resume."""

    def __init__(self, path: Path, *, resume_step: int, every_steps: int, last_step: int) -> None:
        self._path, self._resume_step = path, resume_step
        self._every_steps, self._last_step = every_steps, last_step
        self._lines = self._opened() if path.exists() else None

    def write(self, step: int, routers: "Routers", drawn: np.ndarray) -> None:
        """Takes what the routers of a step did, and the loops that it ran; see `train.metrics.readable`."""
        if not any(routers) or not self._every_steps or (step % self._every_steps and step not in (1, self._last_step)):
            return
        row: dict[str, Any] = {"loops": []}
        ran = slice(None)
        if drawn.ndim == 1:
            detached, trained = (int(n) for n in drawn)
            row["loops"], ran = list(range(detached + 1, detached + trained + 1)), slice(-trained, None)
        for branch, stacks in routers._asdict().items():
            for place, sums in stacks.items():
                load_TLE = sums.load_TLE[ran] if place == "block" else sums.load_TLE
                row[f"{branch}{LOAD}{place}"] = load_TLE.astype(np.int64).tolist()
        self._lines = self._lines or self._opened()
        self._lines.write(step, row)

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
