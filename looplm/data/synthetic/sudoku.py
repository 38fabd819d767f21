"""Sudoku with one solution, 4x4, 6x6 and 9x9, asked for the empty cells.

A puzzle is a random full grid from which clues are taken out in random order as long as the solution stays the only
one. Examples are puzzles with everything exchanged that may be: digits, rows in a band, bands, columns in a stack,
stacks, and rows with columns where blocks are square.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from looplm.config import schema
from looplm.data.synthetic.draw import draw, orders
from looplm.data.synthetic.grid import grid_length, lay_out
from looplm.data.synthetic.task import Examples

BLOCKS = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a block."""


class Sudoku:
    """The task of one size: an empty cell is token 0, the separator the last token."""

    def __init__(self, config: schema.Sudoku) -> None:
        self.config, self.num_examples = config, config.num_examples
        self.vocab_size = config.size + 1 + (not config.in_place)
        self.length = grid_length(config.size**2, config.in_place)
        self.mean_length = float(self.length)

    def __repr__(self) -> str:
        return repr(self.config)

    def examples(self, index_N: np.ndarray) -> Examples:
        config, size = self.config, self.config.size
        number_N = np.asarray(index_N) % config.num_puzzles
        made = [puzzle(size, config.clues, f"sudoku {config.seed}", number) for number in number_N.tolist()]
        grids_2NYX = np.array(made).reshape(-1, 2, size, size).swapaxes(0, 1)
        grids_2NYX = exchanged(grids_2NYX, draw(f"sudoku {config.seed} exchanged", index_N, 4 * size + 1))
        puzzle_NC, solved_NC = grids_2NYX.reshape(2, -1, size * size)
        return lay_out(puzzle_NC, solved_NC, puzzle_NC == 0, separator=size + 1, in_place=config.in_place)


def exchanged(grids: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Exchange digits, rows, columns and axes of every puzzle and its solution alike: (2, N, size, size)."""
    size = grids.shape[-1]
    rows, columns = BLOCKS[size]
    count = np.arange(grids.shape[1])
    if rows == columns:
        turned = (bits[:, -1] & np.uint64(1)).astype(bool)
        grids = np.where(turned[:, None, None], grids.swapaxes(2, 3), grids)
    row_NY = _lines(bits[:, :size], bits[:, size : 2 * size], rows)
    column_NX = _lines(bits[:, 2 * size : 3 * size], bits[:, size : 2 * size][:, ::-1], columns)
    grids = grids[:, count[:, None, None], row_NY[:, :, None], column_NX[:, None, :]]
    digits = np.concatenate([np.zeros((len(count), 1), np.int64), 1 + orders(bits[:, 3 * size : 4 * size])], axis=1)
    return digits[count[:, None, None], grids]


def _lines(bits: np.ndarray, block_bits: np.ndarray, each: int) -> np.ndarray:
    """An order of lines that keeps those of a block together, (N, size)."""
    size = bits.shape[1]
    inside = orders(bits.reshape(-1, size // each, each))
    block = orders(block_bits[:, : size // each])
    lines = block[:, :, None] * each + np.take_along_axis(inside, block[:, :, None], axis=1)
    return lines.reshape(-1, size)


@lru_cache(maxsize=1 << 16)
def puzzle(size: int, clues: int | None, purpose: str, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Make a puzzle with one solution, row by row; 0 is an empty cell. Returns it and its solution.

    `clues`: stop taking clues out at so many; None: when none can go.
    """
    bits = draw(f"{purpose} {size}", np.array([number]), 2 * size * size)[0]
    order = orders(bits[: size * size]).tolist()
    solved = next(solutions([0] * (size * size), size, bits[size * size :].tolist()))
    cells = list(solved)
    left = len(cells)
    for cell in order:
        if left == (clues or 0):
            break
        digit, cells[cell] = cells[cell], 0
        if _has_another(cells, size, cell, digit):
            cells[cell] = digit
        else:
            left -= 1
    return tuple(cells), tuple(solved)


def _has_another(cells: list[int], size: int, cell: int, digit: int) -> bool:
    """Whether the puzzle has a solution with another digit than `digit` in the empty `cell`."""
    seen = {cells[peer] for peer in _peers(size)[cell]} | {digit}
    others = (other for other in range(1, size + 1) if other not in seen)
    return any(next(solutions([*cells[:cell], other, *cells[cell + 1 :]], size), None) for other in others)


def solutions(cells: list[int], size: int, preference: list[int] | None = None) -> Iterator[list[int]]:
    """All solutions of a puzzle whose clues do not contradict one another, fewest choices first.

    `preference`: for every cell, which digit it tries first; any number.
    """
    peers, every = _peers(size), (1 << size) - 1
    cells = list(cells)
    open_cells = {cell for cell, digit in enumerate(cells) if not digit}
    allowed = [every] * len(cells)
    for cell in open_cells:
        for peer in peers[cell]:
            if cells[peer]:
                allowed[cell] &= ~(1 << (cells[peer] - 1))

    def fill() -> Iterator[list[int]]:
        if not open_cells:
            yield list(cells)
            return
        cell = min(open_cells, key=lambda c: (allowed[c].bit_count(), c))
        open_cells.remove(cell)
        choices = [digit for digit in range(size) if allowed[cell] >> digit & 1]
        if preference and choices:
            turn = preference[cell] % len(choices)
            choices = choices[turn:] + choices[:turn]
        for digit in choices:
            changed = [peer for peer in peers[cell] if peer in open_cells and allowed[peer] >> digit & 1]
            for peer in changed:
                allowed[peer] ^= 1 << digit
            if all(allowed[peer] for peer in changed):
                cells[cell] = digit + 1
                yield from fill()
            for peer in changed:
                allowed[peer] |= 1 << digit
        cells[cell] = 0
        open_cells.add(cell)

    return fill()


@lru_cache
def _peers(size: int) -> list[list[int]]:
    """The other cells of every cell's row, column and block."""
    rows, columns = BLOCKS[size]

    def together(a: int, b: int) -> bool:
        (y, x), (v, u) = divmod(a, size), divmod(b, size)
        return a != b and (y == v or x == u or (y // rows, x // columns) == (v // rows, u // columns))

    cells = range(size * size)
    return [[other for other in cells if together(cell, other)] for cell in cells]
