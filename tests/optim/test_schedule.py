"""Learning rates at the steps that matter."""

import numpy as np
import pytest

from looplm.config.schema import Optim, Schedule
from looplm.optim.schedule import build_schedule

NUM_STEPS = 111


def rates(num_steps: int = NUM_STEPS, **schedule: object) -> list[float]:
    """Of every step; the peak is 2 and the end a quarter of it."""
    config = Optim(learning_rate=2.0, schedule=Schedule(final_fraction=0.25, **schedule))
    rate = build_schedule(config, num_steps)
    return [float(rate(step)) for step in range(num_steps)]


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_warm_up_peak_and_end(decay: str, warmup: int) -> None:
    rate = rates(decay=decay, warmup_steps=warmup)
    assert rate[warmup] == pytest.approx(2.0)
    assert rate[-1] == pytest.approx(2.0 if decay == "constant" else 0.5)
    np.testing.assert_allclose(rate[:warmup], 2.0 * np.arange(1, warmup + 1) / max(warmup, 1), rtol=1e-6)
    assert np.all(np.diff(rate[warmup:]) <= 0)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_halfway_is_the_mean_of_both_ends(decay: str) -> None:
    assert rates(decay=decay, warmup_steps=10)[60] == pytest.approx(1.25)


def test_wsd_falls_in_its_last_steps_only() -> None:
    rate = rates(num_steps=100, decay="wsd", wsd_fraction=0.2, warmup_steps=10)
    assert rate[9:80] == pytest.approx([2.0] * 71)
    np.testing.assert_allclose(rate[80:], 2.0 - 1.5 * np.arange(1, 21) / 20, rtol=1e-6)


def test_wsd_falls_over_all_steps_after_the_warm_up_at_most() -> None:
    settings = {"num_steps": 20, "warmup_steps": 5}
    assert rates(**settings, decay="wsd", wsd_fraction=1.0) == pytest.approx(rates(**settings, decay="linear"))
    assert rates(**settings, decay="wsd", wsd_fraction=0.0)[-1] == 2.0


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "wsd"])
def test_a_run_of_one_step_has_the_peak(decay: str) -> None:
    assert rates(num_steps=1, decay=decay) == [2.0]
