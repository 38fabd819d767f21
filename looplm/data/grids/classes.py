"""Which Sudokus are the same but for symmetry, as far as it takes to keep them apart from others.

Exchanging digits, rows of a band, bands, columns of a stack, stacks and, where blocks are square, rows with columns
makes another Sudoku of the same kind. Equal kinds get equal numbers. That unequal kinds may share one does no harm: a
split by these numbers never has the same kind on both sides.
"""

from functools import lru_cache
from itertools import combinations, permutations, product

import numpy as np

from looplm.data.index import scramble
from looplm.data.synthetic.sudoku import BLOCKS


def grid_class(grids_NC: np.ndarray) -> np.ndarray:
    """Number full grids, (N, cells) with digits from 1, by what symmetry leaves: (N,) uint64.

    Two rows make a permutation of the digits, from the one to the other in the same column; how long its cycles are
    depends on nothing that may be exchanged. The same of columns.
    """
    size = int(grids_NC.shape[1] ** 0.5)
    grids_NYX = grids_NC.reshape(-1, size, size).astype(np.int64) - 1
    rows, columns = BLOCKS[size]
    of_rows, of_columns = _lines_class(grids_NYX, rows), _lines_class(grids_NYX.swapaxes(1, 2), columns)
    if rows == columns:
        of_rows, of_columns = np.minimum(of_rows, of_columns), np.maximum(of_rows, of_columns)
    return scramble(of_rows) + of_columns


def _lines_class(grids_NYX: np.ndarray, each: int) -> np.ndarray:
    """The cycles between all pairs of lines, in any order but with those inside a band apart."""
    size = grids_NYX.shape[1]
    column_of_digit = np.argsort(grids_NYX, axis=2)
    total_N = np.zeros(len(grids_NYX), np.uint64)
    for a, b in combinations(range(size), 2):
        step_ND = np.take_along_axis(grids_NYX[:, b], column_of_digit[:, a], axis=1)
        at_ND, cycles_N = step_ND, np.zeros(len(step_ND), np.uint64)
        for _ in range(size):
            # How many digits are back where they were after so many steps, for every number of them.
            cycles_N = cycles_N * np.uint64(size + 1) + (at_ND == np.arange(size)).sum(axis=1).astype(np.uint64)
            at_ND = np.take_along_axis(step_ND, at_ND, axis=1)
        total_N += scramble(cycles_N * np.uint64(2) + np.uint64(a // each == b // each))
    return total_N


def puzzle_class(puzzles_NC: np.ndarray) -> np.ndarray:
    """Number puzzles of 4x4, (N, 16) with 0 for empty cells, by what symmetry leaves: (N,) uint64.

    All 128 ways to exchange lines, with digits named in the order of their appearance; the smallest counts.
    """
    ways_NWC = puzzles_NC[:, _exchanges()].astype(np.int64)
    first_NWD = np.stack(
        [(ways_NWC == digit).argmax(axis=2) + 99 * (ways_NWC != digit).all(axis=2) for digit in range(1, 5)], axis=2
    )
    name_NWD = np.argsort(np.argsort(first_NWD, axis=2), axis=2) + 1
    named_NWC = np.where(ways_NWC == 0, 0, np.take_along_axis(name_NWD, np.maximum(ways_NWC - 1, 0), axis=2))
    return (named_NWC @ 5 ** np.arange(16)).min(axis=1).astype(np.uint64)


@lru_cache
def _exchanges() -> np.ndarray:
    """The cell that every cell is taken from, for every exchange of the lines of 4x4, (128, 16)."""
    lines = [
        [2 * band + line for band, order in zip(bands, orders, strict=True) for line in order]
        for bands in permutations(range(2))
        for orders in product(permutations(range(2)), repeat=2)
    ]
    cells = np.arange(16).reshape(4, 4)
    return np.array(
        [
            turned[np.ix_(rows, columns)].reshape(-1)
            for turned in (cells, cells.T)
            for rows in lines
            for columns in lines
        ]
    )
