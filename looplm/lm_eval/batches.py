"""Batches of few shapes: texts of all lengths, and a handful of compiled programs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from looplm.data.window import IGNORED
from looplm.lm_eval.encoding import Span

SHORTEST = 32
"""Lengths are this, twice this, ... and the longest."""
TOKENS = 16384
"""Of a batch, where nobody says how many rows it has."""


class Shapes(NamedTuple):
    """How long batches are, and how many rows they have."""

    max_length: int
    """Tokens that the model reads at most."""
    num_rows: int | None = None
    """Of every batch; None: as many as there are lengths in TOKENS."""
    multiple: int = 1
    """Of which the rows are a multiple: over so many devices they are split."""

    def length(self, num_tokens: int) -> int:
        """Return the length of a batch whose longest row has so many tokens."""
        length = SHORTEST
        while length < num_tokens:
            length *= 2
        return min(length, self.max_length)

    def rows(self, length: int) -> int:
        """Return the rows of batches of that length."""
        rows = max(TOKENS // length, 1) if self.num_rows is None else self.num_rows
        return -(-rows // self.multiple) * self.multiple


class Batch(NamedTuple):
    """Rows padded on the right, and with empty rows."""

    numbers: list[int]
    """Which span every row is; fewer than rows, where the last are empty."""
    tokens_BS: np.ndarray
    """int32."""
    labels_BS: np.ndarray
    """int32; IGNORED where nothing is scored."""
    length_B: np.ndarray
    """Tokens of every row, int32; 0 for one that is empty."""


def batches(spans: Sequence[Span], shapes: Shapes) -> Iterator[Batch]:
    """Yield all spans, the longest first: what is too large for the memory shows at once.

    spans: see `fitted`; at least one token of each is scored.
    """
    order = sorted(range(len(spans)), key=lambda number: -len(spans[number].ids))
    while order:
        length = shapes.length(len(spans[order[0]].ids) - 1)
        rows = shapes.rows(length)
        numbers, order = order[:rows], order[rows:]
        tokens_BS, labels_BS = np.zeros((rows, length), np.int32), np.full((rows, length), IGNORED, np.int32)
        length_B = np.zeros(rows, np.int32)
        for row, number in enumerate(numbers):
            ids, num_scored = spans[number]
            end = length_B[row] = len(ids) - 1
            tokens_BS[row, :end] = ids[:-1]
            labels_BS[row, end - num_scored : end] = ids[len(ids) - num_scored :]
        yield Batch(numbers, tokens_BS, labels_BS, length_B)
