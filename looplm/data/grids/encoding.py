"""Grids of colours as rows of tokens: on a square canvas, closed below and to the right by a border, and back."""

import numpy as np

from looplm.data.grids.augmentation import COLOURS

PAD, END, FIRST_COLOUR = 0, 1, 2
VOCAB_SIZE = FIRST_COLOUR + COLOURS
CANVAS = 30
"""Rows and columns of ARC's largest grids."""


def encode(grid: np.ndarray, canvas: int = CANVAS, place: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Put a grid of colours on a canvas with its first cell at `place`, (canvas * canvas,) uint8.

    The border of END is left out where it would fall off the canvas.
    """
    (y, x), (height, width) = place, grid.shape
    tokens = np.full((canvas, canvas), PAD, np.uint8)
    tokens[y + height : y + height + 1, x : x + width] = END
    tokens[y : y + height, x + width : x + width + 1] = END
    tokens[y : y + height, x : x + width] = grid + FIRST_COLOUR
    return tokens.reshape(-1)


def decode(tokens: np.ndarray) -> np.ndarray:
    """Read the grid that begins in the first cell, whatever else was written: the largest rectangle of colours there.

    tokens: (canvas * canvas,) of a grid at place (0, 0), as a model predicts it. May be empty, (0, 0).
    """
    canvas = int(len(tokens) ** 0.5)
    tokens = np.asarray(tokens).reshape(canvas, canvas)
    is_colour = (tokens >= FIRST_COLOUR) & (tokens < VOCAB_SIZE)
    leading = np.where(is_colour.all(axis=1), canvas, is_colour.argmin(axis=1))
    widths = np.minimum.accumulate(leading)
    height = int(np.argmax(widths * np.arange(1, canvas + 1))) + 1
    width = int(widths[height - 1])
    return (tokens[: height if width else 0, :width] - FIRST_COLOUR).astype(np.uint8)
