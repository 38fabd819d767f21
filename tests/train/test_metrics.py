"""Metrics are numbered by loop, whatever part of the window ran."""

import numpy as np
import pytest

from looplm.train.metrics import readable


def test_loops_are_numbered_from_the_first_of_the_step():
    metrics = {
        "train/loss": np.float32(2.0),
        "train/loss_loop": np.float32([9.0, 3.0, 2.0]),
        "gate/exit": np.float32([0.0, 0.25, 0.75]),
    }
    row = readable(metrics, np.array([5, 2]))
    assert row["loop/num_loops"] == 7
    assert (row["train/loss_loop_6"], row["train/loss_loop_7"]) == (3.0, 2.0)
    assert not {"train/loss_loop", "train/loss_loop_5", "train/loss_loop_8"} & set(row)
    assert (row["gate/exit_loop_6"], row["gate/exit_loop_7"]) == (0.25, 0.75)
    assert row["gate/expected_depth"] == pytest.approx(0.25 * 6 + 0.75 * 7)


@pytest.mark.parametrize("drawn", [[0, 1], [0, 2], [1, 1]])
def test_one_loop_has_no_update_before_its_own(drawn):
    row = readable({"loop/update_cosine": np.float32(0.5)}, np.array(drawn))
    assert ("loop/update_cosine" in row) == (sum(drawn) > 1)


@pytest.mark.parametrize("drawn", [[[0, 1], [2, 2], [3, 1]], [2, 2]])
def test_numbers_of_experts_are_there_whoever_draws_the_depth(drawn):
    metrics = {
        "train/loss": np.float32(2.0), "moe/load/block": np.ones((2, 1, 4), np.int32),
        "moe/kept/block": np.ones(2, np.int32),
    }  # fmt: skip
    row = readable(metrics, np.array(drawn))
    assert any(name.startswith("moe/") for name in row)


def test_the_loops_of_different_sequences_are_averaged():
    row = readable({"train/loss": np.float32(2.0)}, np.array([[0, 1], [2, 2], [3, 1], [0, 1]]))
    assert row["loop/num_loops"] == (1 + 4 + 4 + 1) / 4


def test_a_step_without_a_label_has_no_means() -> None:
    """Sums over nothing are 0 on the device, which would look like a mean."""
    metrics = {
        "train/loss": np.float32(0), "train/tokens": np.int32(0), "train/objective": np.float32(0),
        "train/loss_loop": np.zeros(2, np.float32), "loop/update_cosine": np.float32(0),
        "gate/exit": np.zeros(2, np.float32), "optim/learning_rate": np.float32(0.5),
    }  # fmt: skip
    row = readable(metrics, np.array([0, 2]))
    assert np.isnan(row.pop("train/loss"))
    assert row == {"train/tokens": 0, "optim/learning_rate": 0.5, "loop/num_loops": 2}
    metrics["train/tokens"] = np.int32(1)
    assert {"train/objective", "train/loss_loop_1", "gate/exit_loop_2"} <= readable(metrics, np.array([0, 2])).keys()
