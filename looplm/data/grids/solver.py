"""Solve many Sudokus side by side, and count the guesses.

Cells with one digit left, and digits with one cell left in a row, column or block, are settled together in all puzzles
by products with the matrix of cells and units, until nothing changes. Then a guess is made in the cell with the fewest
digits left: every digit becomes a state of its own on a stack that all puzzles share.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from looplm.data.synthetic.sudoku import BLOCKS

_TOGETHER = 1024
"""States that are settled together; more would not fit into caches."""


class Solved(NamedTuple):
    """What was found for every puzzle."""

    count_N: np.ndarray
    """Solutions, up to the limit."""
    grids_NC: np.ndarray
    """The last of them, digits from 1, uint8; zeros where there is none."""
    guesses_N: np.ndarray
    """Digits that were tried."""


def allowed_digits(puzzles_NC: np.ndarray) -> np.ndarray:
    """The digits that clues leave to every cell by itself, (N, digits, cells) bool; 0 is an empty cell."""
    size = int(puzzles_NC.shape[1] ** 0.5)
    digits = np.arange(1, size + 1)[:, None]
    return (puzzles_NC[:, None] == digits) | (puzzles_NC[:, None] == 0)


def solve(allowed_NDC: np.ndarray, *, limit: int, rng: np.random.Generator | None = None) -> Solved:
    """Find up to `limit` solutions of every puzzle.

    Where a puzzle has fewer, every guess is followed to its end, so the number of guesses depends on no order of them.

    Args:
        allowed_NDC: the digits that every cell may have, bool.
        rng: guess in random cells of the fewest digits, in a random order; None: in the first one.
    """
    N, _, C = allowed_NDC.shape
    count_N, guesses_N, grids_NC = np.zeros(N, np.int64), np.zeros(N, np.int64), np.zeros((N, C), np.uint8)
    stack = [(allowed_NDC, np.arange(N))]
    while stack:
        states, owner_M = stack.pop()
        if len(states) > _TOGETHER:
            stack.append((states[:-_TOGETHER], owner_M[:-_TOGETHER]))
            states, owner_M = states[-_TOGETHER:], owner_M[-_TOGETHER:]
        wanted = count_N[owner_M] < limit
        states, alive = settle(states[wanted])
        owner_M = owner_M[wanted][alive]
        left_MC = states.sum(axis=1, dtype=np.uint8)
        solved = (left_MC == 1).all(axis=1)
        np.add.at(count_N, owner_M[solved], 1)
        grids_NC[owner_M[solved]] = states[solved].argmax(axis=1) + 1
        states, owner_M, left_MC = states[~solved], owner_M[~solved], left_MC[~solved]
        if len(states):
            cell_M = _guessed_cell(left_MC, rng)
            np.add.at(guesses_N, owner_M, left_MC[np.arange(len(states)), cell_M])
            stack.extend(_guesses(states, owner_M, cell_M, rng))
    return Solved(np.minimum(count_N, limit), grids_NC, guesses_N)


def settle(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Settle what follows by singles, (M, digits, cells) bool. Returns the states without contradiction, and which of
    the given they are, (M,) bool."""
    units_CU = _units(states.shape[1])
    states, alive = states.copy(), np.ones(len(states), bool)
    active = np.arange(len(states))
    while active.size:
        now = states[active]
        digits_MC = now.sum(axis=1, dtype=np.uint8)
        cells_MDU = _times(now, units_CU)
        lonely = _times(cells_MDU == 1, units_CU.T) > 0
        single = now & (lonely | (digits_MC == 1)[:, None])
        # A single cell is in three units of its own; whoever else sees it is in at least one.
        seen = _times(_times(single, units_CU), units_CU.T)
        after = now & (seen <= 3 * single) & (single | ~single.any(axis=1, keepdims=True))
        several = single.sum(axis=1, dtype=np.uint8) > 1
        contradiction = ((digits_MC == 0) | several).any(axis=1) | (cells_MDU == 0).any(axis=(1, 2))
        alive[active[contradiction]] = False
        changed = (after != now).any(axis=(1, 2)) & ~contradiction
        active = active[changed]
        states[active] = after[changed]
    return states[alive], alive


def _times(x_MDI: np.ndarray, matrix_IO: np.ndarray) -> np.ndarray:
    """One product for all: numpy would make one of every puzzle."""
    flat = x_MDI.reshape(-1, x_MDI.shape[-1]).astype(np.float32, copy=False)
    return (flat @ matrix_IO).reshape(*x_MDI.shape[:-1], -1)


def _guessed_cell(left_MC: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """The cell with the fewest digits left of those with several."""
    left = np.where(left_MC == 1, np.inf, left_MC)
    return (left if rng is None else left + rng.random(left.shape) / 2).argmin(axis=1)


def _guesses(
    states: np.ndarray, owner_M: np.ndarray, cell_M: np.ndarray, rng: np.random.Generator | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The states in which the cell has one of its digits; the first guesses of all puzzles come last, to come off the
    stack before anybody's second."""
    row_M = np.arange(len(states))
    allowed_MD = states[row_M, :, cell_M]
    rank_MD = np.broadcast_to(np.arange(allowed_MD.shape[1]), allowed_MD.shape)
    if rng is not None:
        rank_MD = rng.permuted(rank_MD, axis=1)
    pushed = []
    for digit_M in np.argsort(-rank_MD, axis=1).T:
        here = allowed_MD[row_M, digit_M]
        if here.any():
            guessed = states[here]
            guessed[np.arange(len(guessed)), :, cell_M[here]] = False
            guessed[np.arange(len(guessed)), digit_M[here], cell_M[here]] = True
            pushed.append((guessed, owner_M[here]))
    return pushed


@lru_cache
def _units(size: int) -> np.ndarray:
    """Which cells belong to which rows, columns and blocks, (cells, 3 * size) float32."""
    rows, columns = BLOCKS[size]
    y, x = np.divmod(np.arange(size * size), size)
    units = np.stack([y, size + x, 2 * size + y // rows * (size // columns) + x // columns], axis=1)
    return (units[:, :, None] == np.arange(3 * size)).any(axis=1).astype(np.float32)
