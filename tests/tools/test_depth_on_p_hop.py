import runpy
from pathlib import Path

import numpy as np
import pytest

from looplm.data.synthetic.p_hop import PHop

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "depth_on_p_hop.py"))


@pytest.mark.slow
def test_one_layer_learns_one_hop_when_it_runs_twice() -> None:
    """A hop is two look-ups: which letter precedes each, then where that letter was mine."""
    task = PHop(hops=1, length=16)
    held_out = task.batch(256, seed=TOOL["HELD_OUT_SEED"], step=0)
    run = TOOL["run_of"](task, dim=32, num_loops=2, num_steps=400, seed=0)
    correct_GR = TOOL["train_and_score"](run, task, held_out, depths=(1, 2))
    shallow, trained = correct_GR.sum(axis=0) / (held_out["labels"] >= 0).sum()
    assert trained > 0.9
    assert shallow < 0.7


def test_a_difference_is_one_of_accuracies_with_an_interval_around_it() -> None:
    answers_G = np.full(400, 10.0)
    correct_GR = np.stack([np.full(400, 9.0), np.tile([4.0, 6.0], 200)], axis=1)
    points, low, _, high = TOOL["difference"](correct_GR, answers_G).replace("|", "").split()
    assert float(points) == 40.0
    # The mean of 400 draws of 4 or 6 has a standard error of 0.05 of 10 answers.
    assert abs(float(low) - 39.0) < 0.15
    assert abs(float(high) - 41.0) < 0.15
