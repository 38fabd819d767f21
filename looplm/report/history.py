"""The lines of `metrics.jsonl` as columns over the steps."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


class History:
    """What was measured over the steps. A name that was never measured gives empty columns."""

    def __init__(self, rows: Sequence[dict[str, float]]) -> None:
        self._rows = rows

    @property
    def last_step(self) -> int:
        return max((int(row["step"]) for row in self._rows), default=0)

    def __contains__(self, name: Any) -> bool:
        return any(name in row for row in self._rows)

    def column(self, name: str) -> tuple[Column, Column]:
        """Returns (steps, values) of the lines that hold a finite number under `name`."""
        pairs = np.array([(row["step"], row[name]) for row in self._rows if name in row], np.float64).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs[:, 1])]
        return pairs[:, 0], pairs[:, 1]

    def non_finite(self, name: str) -> int:
        """How many lines of steps with labels hold NaN or an infinity under `name`."""
        return sum(not math.isfinite(row[name]) for row in self._rows if name in row and row.get("train/tokens", 1))

    def last(self, name: str) -> float | None:
        values = self.column(name)[1]
        return float(values[-1]) if len(values) else None

    def at_the_end(self, name: str) -> float | None:
        """The last value of the smoothed column."""
        values = self.column(name)[1]
        return float(smooth(values)[-1]) if len(values) else None

    def median(self, name: str) -> float | None:
        values = self.column(name)[1]
        return float(np.median(values)) if len(values) else None

    def numbered(self, stem: str) -> dict[int, str]:
        """Returns {n: name} of the names `stem` + n, in rising order: `train/loss_loop_` gives the loops."""
        pattern = re.compile(re.escape(stem) + r"(\d+)")
        names = {name for row in self._rows for name in row}
        return dict(sorted((int(match[1]), name) for name in names if (match := pattern.fullmatch(name))))


def smooth(values: Column) -> Column:
    """Returns the centred running mean over a fortieth of the values; at the ends the window is cut off."""
    window = np.ones(len(values) // 40 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
