"""Bounds against the tails that define them, and against draws."""

import numpy as np
import pytest
from scipy.stats import binom

from looplm.eval.bounds import clopper_pearson, hoeffding_bentkus
from looplm.eval.solve import solve_curve


def test_the_ends_of_the_interval_leave_the_tails_out():
    low, high = clopper_pearson(np.array([0, 7, 20]), 20)
    assert (low[0], high[2]) == (0, 1)
    assert binom.sf(6, 20, low[1]) == pytest.approx(0.025)
    assert binom.cdf(7, 20, high[1]) == pytest.approx(0.025)


def test_the_bound_holds_as_often_as_it_says():
    draw = np.random.default_rng(0)
    means = draw.binomial(40, 0.1, size=4000) / 40
    bounds = {mean: hoeffding_bentkus(mean, 40, 0.1) for mean in set(means.tolist())}
    assert 0 < np.mean([bounds[mean] < 0.1 for mean in means.tolist()]) <= 0.1
    assert hoeffding_bentkus(0.0, 40, 0.1) < hoeffding_bentkus(0.1, 40, 0.1) < hoeffding_bentkus(0.1, 10, 0.1) <= 1
    assert hoeffding_bentkus(1.0, 40, 0.1) == 1


def test_solved_at_a_depth_and_by_it():
    """Four examples of two answers: solved from loop 2 on, at loop 1 alone, never, and at 3."""
    correct_GR = np.array([[1, 2, 2], [2, 1, 1], [0, 1, 1], [0, 0, 2]])
    solve = solve_curve(correct_GR, np.full(4, 2))
    assert (solve.at, solve.by, solve.lost) == ([0.25, 0.25, 0.5], [0.25, 0.5, 0.75], [0, 0.25, 0.25])
    assert solve.needs == {"p50": 2, "p90": 3, "p99": 3}
    assert solve.by_low[0] < 0.25 < solve.by_high[0]
