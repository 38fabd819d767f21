"""From loads to logged numbers."""

import numpy as np
import pytest

from looplm.metrics.routers import router_numbers
from looplm.train.metrics import readable

LOAD = np.array([[[0, 0, 0, 0]], [[4, 2, 2, 0]], [[5, 1, 2, 0]]])
"""(3 iterations of the window, 1 layer, 4 experts); the first did not run."""


def test_the_numbers_of_a_step_by_loop():
    metrics = {
        "moe/load/block": LOAD,
        "moe/kept/block": np.array([0, 0, 6]),
        "moe/load/coda": np.array([[[3, 1, 2, 2]]]),
        "moe/kept/coda": np.array([0]),
        "moe/dropped": np.array(3),
    }
    found = readable(metrics, np.array([0, 2]))
    assert found.pop("loop/num_loops") == 2
    assert found == pytest.approx(
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
    found = router_numbers({"moe/load/block": LOAD, "moe/kept/block": np.zeros(3)}, None)
    assert found == {"moe/load_max": 2.5, "moe/load_min": 0.0, "moe/dead": 1.0}


def test_a_dense_model_has_none():
    assert router_numbers({"train/loss": np.array(1.0)}, [1, 2]) == {}
