"""How a puzzle on a grid becomes a sequence: answered where its cells are, or after them."""

import numpy as np

from looplm.data.synthetic.task import Examples
from looplm.data.window import IGNORED


def grid_length(num_cells: int, in_place: bool) -> int:
    """Tokens of a puzzle."""
    return num_cells if in_place else 2 * num_cells


def lay_out(
    puzzle_NC: np.ndarray, solved_NC: np.ndarray, asked_NC: np.ndarray, *, separator: int, in_place: bool
) -> Examples:
    """Ask for the cells `asked_NC` of the solved grids.

    In place, a cell's label is its solution, for models that see all cells. Else puzzle, separator and solved grid
    follow one another, and every token predicts the next, so that a causal model has seen the puzzle.
    """
    answers_NC = np.where(asked_NC, solved_NC, IGNORED)
    if in_place:
        tokens, labels = puzzle_NC, answers_NC
    else:
        separators = np.full((len(puzzle_NC), 1), separator)
        tokens = np.concatenate([puzzle_NC, separators, solved_NC[:, :-1]], axis=1)
        labels = np.concatenate([np.full_like(answers_NC, IGNORED), answers_NC], axis=1)
    lengths = np.full(len(tokens), tokens.shape[1])
    return Examples(tokens.astype(np.int32), labels.astype(np.int32), lengths)
