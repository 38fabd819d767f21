"""Layers that loops have in common, and what every loop adds of its own to be the layer that it stands for.

    W_r ~ W + A_r B_r      A_r B_r: the matrix of that rank that is nearest to W_r - W, by its singular values

Relaxed Recursive Transformers (arXiv 2410.20672), whose B holds the singular values, as here. Scales of norms are too
few to be worth sharing: every loop has those of its layer.
"""

import math
from collections.abc import Iterator

import numpy as np

from looplm.convert.retrofit.cut import Origin
from looplm.convert.retrofit.source import Source
from looplm.convert.retrofit.stages import mean_layer


class Relaxed:
    """The layers that successive loops stand for: loop r and place j of the block are layer r * count + j of a range.

    layers: the range. shared: what the block's layers are made of.
    """

    def __init__(self, source: Source, layers: range, shared: tuple[Origin, ...], rank: int):
        self.source, self.layers, self.shared, self.rank = source, layers, shared, rank
        self._second: dict[tuple[str, int], np.ndarray] = {}
        """Matrices that came with their first one, until they are asked for."""

    def scales(self, name: str) -> Iterator[np.ndarray]:
        """A leaf of all loops that is taken over: (1, layers of the block, ...), a loop after the other."""
        for loop in self._loops():
            yield np.stack([self.source.layer(name, number) for number in loop])[None]

    def low_rank(self, kernel: str, which: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """A (which = 0) or B (1) beside a kernel, of all loops.

        Args:
            kernel: its path in a layer.
            shape: of the leaf, (loops, layers of the block, ...).
        """
        matrix = (-1, math.prod(shape[3:])) if which else (math.prod(shape[2:-1]), -1)
        for number, loop in enumerate(self._loops()):
            value = self._second.pop((kernel, number), None) if which else None
            if value is None:
                pairs = [self._pair(kernel, *both, matrix) for both in zip(loop, self.shared, strict=True)]
                first, second = (np.stack(matrices) for matrices in zip(*pairs, strict=True))
                if not which:
                    self._second[kernel, number] = second
                value = second if which else first
            yield value.reshape(1, *shape[1:])

    def _pair(self, kernel: str, number: int, origin: Origin, matrix: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        shared = mean_layer(self.source, kernel, origin)
        residual = self.source.layer(kernel, number).astype(np.float64) - shared
        return nearest_of_rank(residual.reshape(matrix), self.rank)

    def _loops(self) -> Iterator[range]:
        count = len(self.shared)
        yield from (self.layers[start : start + count] for start in range(0, len(self.layers), count))


def nearest_of_rank(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A (inputs, rank) and B (rank, outputs), float32, whose product is the nearest matrix of that rank. Where the rank
    is more than the matrix can have, the columns of A that are left are a unit direction and those of B are 0: they add
    nothing, and can learn."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found = min(rank, len(s))
    a, b = np.zeros((matrix.shape[0], rank), np.float32), np.zeros((rank, matrix.shape[1]), np.float32)
    a[:, :found], b[:found] = u[:, :found], s[:found, None] * vt[:found]
    a[np.arange(found, rank) % len(a), np.arange(found, rank)] = 1.0
    return a, b
