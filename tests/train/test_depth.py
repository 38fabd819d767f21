"""The loops of a step: a function of seed and step, split by the gradient window."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from looplm.model.depth import Depth
from looplm.train.depth import DepthSchedule


@pytest.fixture
def uniform(tiny_run):
    def build(**changes):
        return DepthSchedule(tiny_run(**{"loop.depth": {"kind": "uniform", "max_loops": 6}, **changes}))

    return build


def test_fixed_depth_is_split_into_prefix_and_window(tiny_run):
    schedule = DepthSchedule(tiny_run(**{"loop.num_loops": 5, "loop.backprop_loops": 2}))
    np.testing.assert_array_equal(schedule.draw(0), [3, 2])
    assert schedule.draw(0).dtype == np.int32
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


def test_loops_of_a_shallow_draw_are_numbered_by_what_ran():
    """Of a window of 4: sequences of 5 and of 2 loops; what is skipped comes first and has no number of a loop."""
    depth = Depth(4, jnp.array([4, 2]), jnp.array([1, 0]))
    np.testing.assert_array_equal(depth.num_loops, [5, 2])
    np.testing.assert_array_equal(depth.active_RB.T, [[True] * 4, [False, False, True, True]])
    np.testing.assert_array_equal(depth.numbers_RB.T, [[1, 2, 3, 4], [-2, -1, 0, 1]])
    shared = Depth(4, jnp.int32(3), jnp.int32(0))
    np.testing.assert_array_equal(shared.numbers_RB[:, 0], [-1, 0, 1, 2])
    np.testing.assert_array_equal(Depth(3, num_detached=7).numbers_RB[:, 0], [7, 8, 9])


def test_the_model_is_told_what_was_drawn(uniform):
    depth = uniform(**{"loop.backprop_loops": 4}).as_depth(jnp.array([2, 3]))
    assert (depth.window, int(depth.num_detached), int(depth.num_trained)) == (4, 2, 3)
    batch = uniform(**{"loop.depth_per": "sequence"}).as_depth(jnp.array([[0, 3], [1, 2]]))
    np.testing.assert_array_equal(batch.num_detached, [0, 1])
    np.testing.assert_array_equal(batch.num_trained, [3, 2])
