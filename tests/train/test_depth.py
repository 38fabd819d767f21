"""The loops of a step: a function of seed and step, split by the gradient window."""

from collections import Counter

import numpy as np
import pytest

from looplm.train.depth import DepthSchedule


@pytest.fixture
def uniform(tiny_run):
    def build(**changes):
        return DepthSchedule(tiny_run(**{"loop.depth": {"kind": "uniform", "max_loops": 6}, **changes}))

    return build


def test_fixed_depth_is_split_into_prefix_and_window(tiny_run):
    schedule = DepthSchedule(tiny_run(**{"loop.num_loops": 5, "loop.backprop_loops": 2}))
    np.testing.assert_array_equal(schedule.draw(0), [3, 2])
    depth = schedule.as_depth(None)
    assert (depth.window, depth.num_trained, depth.num_detached) == (2, None, 3)


def test_draws_depend_on_seed_and_step_only(uniform):
    first, again, other = uniform(), uniform(), uniform(seed=1)
    draws = [int(first.num_loops(step)[0]) for step in range(50)]
    assert draws == [int(again.num_loops(step)[0]) for step in reversed(range(50))][::-1]
    assert draws != [int(other.num_loops(step)[0]) for step in range(50)]


def test_every_depth_is_drawn_equally_often(uniform):
    counts = Counter(int(uniform().num_loops(step)[0]) for step in range(6000))
    assert set(counts) == set(range(1, 7))
    assert all(abs(count - 1000) < 5 * 29 for count in counts.values()), counts


def test_window_never_exceeds_the_loops_of_the_step(uniform):
    schedule = uniform(**{"loop.backprop_loops": 4})
    for step in range(50):
        detached, trained = schedule.draw(step)
        assert detached + trained == int(schedule.num_loops(step)[0])
        assert trained == min(4, detached + trained)
