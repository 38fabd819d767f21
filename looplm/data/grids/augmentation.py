"""Turned, mirrored and recoloured grids, and the way back (the names are those of HRM's programs)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

COLOURS = 10
_SEPARATOR = "|||"


class Symmetry(NamedTuple):
    """What is done to a grid, in this order."""

    transposed: bool
    rows_reversed: bool
    columns_reversed: bool


SYMMETRIES = (
    Symmetry(False, False, False),
    Symmetry(True, True, False),  # a quarter to the left, and two, and three
    Symmetry(False, True, True),
    Symmetry(True, False, True),
    Symmetry(False, False, True),
    Symmetry(False, True, False),
    Symmetry(True, False, False),
    Symmetry(True, True, True),
)
"""In the order of their numbers in names."""


def turned(grids: np.ndarray, kind: Symmetry) -> np.ndarray:
    """Turn the last two dims of grids."""
    grids = grids.swapaxes(-1, -2) if kind.transposed else grids
    return grids[..., :: -1 if kind.rows_reversed else 1, :: -1 if kind.columns_reversed else 1]


def turned_back(grids: np.ndarray, kind: Symmetry) -> np.ndarray:
    """Undo `turned`."""
    grids = grids[..., :: -1 if kind.rows_reversed else 1, :: -1 if kind.columns_reversed else 1]
    return grids.swapaxes(-1, -2) if kind.transposed else grids


@dataclass(frozen=True)
class Augmentation:
    """Colours exchanged, then turned."""

    symmetry: int
    colours: tuple[int, ...]
    """The new colour of every colour; that of 0, the background, is 0."""

    @classmethod
    def parse(cls, name: str) -> tuple[str, Self]:
        """Split the name of a puzzle into that of the task and what was done to it."""
        task, *parts = name.split(_SEPARATOR)
        if not parts:
            return task, cls(0, tuple(range(COLOURS)))
        symmetry, colours = parts
        return task, cls(int(symmetry.removeprefix("t")), tuple(map(int, colours)))

    def name(self, task: str) -> str:
        colours = "".join(map(str, self.colours))
        return f"{task}{_SEPARATOR}t{self.symmetry}{_SEPARATOR}{colours}"

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """Change a grid of colours, uint8."""
        return turned(np.array(self.colours, np.uint8)[grid], SYMMETRIES[self.symmetry])

    def undo(self, grid: np.ndarray) -> np.ndarray:
        """Give the grid that `apply` would make into this one."""
        return np.argsort(self.colours).astype(np.uint8)[turned_back(grid, SYMMETRIES[self.symmetry])]


def drawn(count: int, rng: np.random.Generator) -> Sequence[Augmentation]:
    """Draw augmentations, all alike: one of 8 symmetries and an order of the colours 1..9."""
    symmetries = rng.integers(len(SYMMETRIES), size=count).tolist()
    colours = rng.permuted(np.broadcast_to(np.arange(1, COLOURS), (count, COLOURS - 1)), axis=1).tolist()
    return [Augmentation(symmetry, (0, *order)) for symmetry, order in zip(symmetries, colours, strict=True)]
