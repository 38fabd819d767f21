"""Metrics are numbered by loop, whatever part of the window ran."""

import numpy as np
import pytest

from looplm.metrics.step import NO_ROUTERS, LoopSums, Routers, RouterSums, StepOutput
from looplm.train.metrics import readable

LOSS = {"train/loss": np.float32(2.0)}
OUTPUT = StepOutput(np.int32(7), LOSS, {"optim/learning_rate": np.float32(0.5)}, LoopSums(), NO_ROUTERS)


def test_loops_are_numbered_from_the_first_of_the_step():
    loops = LoopSums(np.float32([9.0, 3.0, 2.0]), np.float32([0.0, 0.25, 0.75]))
    row = readable(OUTPUT._replace(loops=loops), np.array([5, 2]))
    assert row.pop("gate/expected_depth") == pytest.approx(0.25 * 6 + 0.75 * 7)
    assert row == {
        "train/loss": 2.0,
        "train/tokens": 7,
        "train/loss_loop_6": 3.0,
        "train/loss_loop_7": 2.0,
        "gate/exit_loop_6": 0.25,
        "gate/exit_loop_7": 0.75,
        "loop/num_loops": 7,
        "optim/learning_rate": 0.5,
    }


@pytest.mark.parametrize("drawn", [[0, 1], [0, 2], [1, 1]])
def test_one_loop_has_no_update_before_its_own(drawn):
    row = readable(OUTPUT._replace(means=LOSS | {"loop/update_cosine": np.float32(0.5)}), np.array(drawn))
    assert ("loop/update_cosine" in row) == (sum(drawn) > 1)


@pytest.mark.parametrize("drawn", [[[0, 1], [2, 2], [3, 1]], [2, 2]])
def test_numbers_of_experts_are_there_whoever_draws_the_depth(drawn):
    block = RouterSums(np.ones((2, 1, 4), np.int32), np.ones(2, np.int32), np.int32(0))
    row = readable(OUTPUT._replace(routers=Routers({"block": block}, {})), np.array(drawn))
    assert any(name.startswith("moe/") for name in row)


def test_the_loops_of_different_sequences_are_averaged():
    row = readable(OUTPUT, np.array([[0, 1], [2, 2], [3, 1], [0, 1]]))
    assert row["loop/num_loops"] == (1 + 4 + 4 + 1) / 4


@pytest.mark.parametrize("limit", [np.inf, 3.0])
def test_a_limit_is_there_once_there_is_one(limit):
    row = readable(OUTPUT._replace(numbers={"optim/max_loss": np.float32(limit)}), np.array([0, 2]))
    assert row.get("optim/max_loss", np.inf) == limit


def test_a_step_without_a_label_has_no_means() -> None:
    """Sums over nothing are 0 on the device, which would look like a mean."""
    loops = LoopSums(np.zeros(2, np.float32), np.zeros(2, np.float32))
    means = dict.fromkeys(("train/loss", "train/objective", "loop/update_cosine"), np.float32(0))
    output = OUTPUT._replace(tokens=np.int32(0), means=means, loops=loops)
    row = readable(output, np.array([0, 2]))
    assert np.isnan(row.pop("train/loss"))
    assert row == {"train/tokens": 0, "optim/learning_rate": 0.5, "loop/num_loops": 2}
    scored = readable(output._replace(tokens=np.int32(1)), np.array([0, 2]))
    assert {"train/objective", "train/loss_loop_1", "gate/exit_loop_2"} <= scored.keys()
