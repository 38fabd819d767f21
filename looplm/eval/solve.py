"""Which examples of a task are solved, at a depth and by it."""

import numpy as np

from looplm.eval.bounds import clopper_pearson
from looplm.metrics.sweep import Solve

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def solve_curve(correct_GR: np.ndarray, tokens_G: np.ndarray) -> Solve:
    """Count the examples whose answers are all right, of sums of right tokens at depth 1..R."""
    number, num_loops = correct_GR.shape
    at_GR = correct_GR == tokens_G[:, None]
    by_GR = np.maximum.accumulate(at_GR, axis=1)
    at_R, by_R = at_GR.sum(axis=0), by_GR.sum(axis=0)
    at_low, at_high = clopper_pearson(at_R, number)
    by_low, by_high = clopper_pearson(by_R, number)
    needs = {name: int(np.argmax(by_R >= share * by_R[-1])) + 1 if by_R[-1] else None for name, share in SHARES.items()}
    return Solve(
        num_examples=number,
        depths=list(range(1, num_loops + 1)),
        at=(at_R / number).tolist(),
        at_low=at_low.tolist(),
        at_high=at_high.tolist(),
        by=(by_R / number).tolist(),
        by_low=by_low.tolist(),
        by_high=by_high.tolist(),
        lost=((by_R - at_R) / number).tolist(),
        needs=needs,
    )
