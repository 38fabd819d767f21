"""From loads to logged numbers."""

import numpy as np
import pytest

from looplm.metrics.routers import router_numbers
from looplm.metrics.step import NO_ROUTERS, Routers, RouterSums

LOAD = np.array([[[0, 0, 0, 0]], [[4, 2, 2, 0]], [[5, 1, 2, 0]]])
"""(3 iterations of the window, 1 layer, 4 experts); the first did not run."""


def test_the_numbers_of_a_step_by_loop():
    block = RouterSums(LOAD, np.array([0, 0, 6]), np.array(1))
    coda = RouterSums(np.array([[[3, 1, 2, 2]]]), np.array([0]), np.array(2))
    assert router_numbers(Routers({"block": block, "coda": coda}, {}), [1, 2]) == pytest.approx(
        {
            "moe/load_max": 2.5,
            "moe/load_min": 0.0,
            "moe/dead": 1.0,
            "moe/dropped": 3,
            "moe/load_max_loop_1": 2.0,
            "moe/load_min_loop_1": 0.0,
            "moe/load_max_loop_2": 2.5,
            "moe/load_min_loop_2": 0.0,
            "moe/changed_loop_2": 0.25,
        }
    )


def test_sequences_of_different_depth_have_no_numbers_by_loop():
    found = router_numbers(Routers({}, {"block": RouterSums(LOAD, np.zeros(3), np.array(0))}), None)
    assert found == {"attention/load_max": 2.5, "attention/load_min": 0.0, "attention/dead": 1.0}


def test_a_dense_model_has_none():
    assert router_numbers(NO_ROUTERS, [1, 2]) == {}
