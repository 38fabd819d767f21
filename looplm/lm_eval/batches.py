"""Batches of few shapes: texts of all lengths, and a handful of compiled programs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from looplm.data.window import IGNORED
from looplm.lm_eval.encoding import Ids, Span

SHORTEST = 32
"""Lengths are this, twice this, ... and the longest."""
FEWEST = 8
"""Numbers of targets of a row are this, four times this, ... and the length."""
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

    def targets(self, number: int, length: int) -> int:
        """Return the targets of a batch of that length in which a row has so many of them at most."""
        size = FEWEST
        while size < number:
            size *= 4
        return length if number <= length < size else size

    def rows(self, length: int) -> int:
        """Return the rows of batches of that length."""
        rows = max(TOKENS // length, 1) if self.num_rows is None else self.num_rows
        return -(-rows // self.multiple) * self.multiple


class Target(NamedTuple):
    """An id that is predicted."""

    place: int
    """Of the token that it follows, in its row."""
    label: int
    span: int
    """Which span it is of."""


class Batch(NamedTuple):
    """Rows padded on the right, and with empty rows; M targets each, so that the head reads no place in vain."""

    tokens_BS: np.ndarray
    """int32."""
    length_B: np.ndarray
    """Tokens of every row, int32; 0 for one that is empty."""
    place_BM: np.ndarray
    """int32."""
    label_BM: np.ndarray
    """int32; IGNORED where there is no target."""
    span_BM: np.ndarray
    """Which span a target is of, int32; -1 where there is none."""


def batches(spans: Sequence[Span], shapes: Shapes) -> Iterator[Batch]:
    """Yield all spans, the longest first: what is too large for the memory shows at once.

    Spans that differ in their last token alone, answers A to D of one question, share a row.

    spans: see `fitted`; at least one token of each is scored.
    """
    shared: dict[Ids, list[Target]] = {}
    for number, (ids, num_scored) in enumerate(spans):
        places = range(len(ids) - 1 - num_scored, len(ids) - 1)
        shared.setdefault(ids[:-1], []).extend(Target(place, ids[place + 1], number) for place in places)

    def size(row: tuple[Ids, list[Target]]) -> tuple[int, int]:
        length = shapes.length(len(row[0]))
        return length, shapes.targets(len(row[1]), length)

    rows = sorted(shared.items(), key=lambda row: (size(row), len(row[0])), reverse=True)
    while rows:
        length = size(rows[0])[0]
        taken, rows = rows[: shapes.rows(length)], rows[shapes.rows(length) :]
        yield _batch(taken, shapes.rows(length), length, max(size(row)[1] for row in taken))


def _batch(rows: Sequence[tuple[Ids, list[Target]]], num_rows: int, length: int, num_targets: int) -> Batch:
    tokens_BS, length_B = np.zeros((num_rows, length), np.int32), np.zeros(num_rows, np.int32)
    place_BM = np.zeros((num_rows, num_targets), np.int32)
    label_BM, span_BM = np.full_like(place_BM, IGNORED), np.full_like(place_BM, -1)
    for row, (ids, targets) in enumerate(rows):
        tokens_BS[row, : len(ids)] = ids
        length_B[row] = len(ids)
        place_BM[row, : len(targets)], label_BM[row, : len(targets)], span_BM[row, : len(targets)] = zip(
            *targets, strict=True
        )
    return Batch(tokens_BS, length_B, place_BM, label_BM, span_BM)
