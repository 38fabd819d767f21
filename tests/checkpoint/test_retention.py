"""Which checkpoints stay, and when a run is saved."""

import pytest

from looplm.checkpoint import schedule as schedule_module
from looplm.checkpoint.retention import to_remove
from looplm.checkpoint.schedule import SaveSchedule
from looplm.config.schema import Checkpoint

METRIC = "eval/loss_depth_3"
SCORES = {10: 3.0, 20: 2.0, 40: 1.0, 50: 1.0}


def removed(protected: int | None = None, **config: object) -> list[int]:
    saved = {step: {METRIC: SCORES[step]} if step in SCORES else {} for step in range(10, 80, 10)}
    return to_remove(saved, Checkpoint(**config), METRIC, protected)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep_last": 1}, [70]),
        ({"keep_last": 3}, [50, 60, 70]),
        ({"keep_last": 9}, [10, 20, 30, 40, 50, 60, 70]),
        ({"keep_last": 1, "keep_every": 30}, [30, 60, 70]),
        ({"keep_last": 1, "keep_best": 1}, [50, 70]),
        ({"keep_last": 1, "keep_best": 3}, [20, 40, 50, 70]),
        ({"keep_last": 1, "keep_best": 9}, [10, 20, 40, 50, 70]),
        ({"keep_last": 1, "protected": 20}, [20, 70]),
    ],
)
def test_what_stays(config: dict, kept: list[int]) -> None:
    assert removed(**config) == [step for step in range(10, 80, 10) if step not in kept]


def test_steps_and_minutes() -> None:
    now = [0.0]
    schedule = SaveSchedule(Checkpoint(every_steps=100, every_minutes=2), 250, clock=lambda: now[0])
    assert [step for step in range(1, 251) if schedule.is_due(step)] == [100, 200, 250]
    now[0] = 119.0
    assert not schedule.is_due(101)
    now[0] = 120.0
    assert schedule.is_due(102)
    schedule.saved()
    assert not schedule.is_due(103)
    assert schedule.next_one(102) == "training goes on, the next try is at step 200, or in 2 minutes"
    assert schedule.next_one(250) == "it was the last one of the run"
    assert schedule.next_one(200) == "training goes on, the next try is at step 250, or in 2 minutes"


def test_minutes_alone() -> None:
    now = [0.0]
    schedule = SaveSchedule(Checkpoint(every_steps=None, every_minutes=2), 2500, clock=lambda: now[0])
    assert [step for step in range(1, 2501) if schedule.is_due(step)] == [2500]
    assert schedule.next_one(1000) == "training goes on, the next try is at step 2500, or in 2 minutes"
    now[0] = 120.0
    assert schedule.is_due(1001)


def test_several_processes_agree_on_the_time_at_common_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clock is late: all save, at a step at which all ask."""
    now, asked = [0.0], []

    def first_of_all(text: str) -> str:
        asked.append(text)
        return "due" if now[0] else text  # the other process, whose clock is ahead

    monkeypatch.setattr(schedule_module, "first_of_all", first_of_all)
    schedule = SaveSchedule(Checkpoint(every_steps=1000, every_minutes=1), 2000, clock=lambda: 0.0)
    assert not any(schedule.is_due(step, 2) for step in range(1, 25))
    now[0] = 61.0
    assert [step for step in range(25, 42) if schedule.is_due(step, 2)] == [30, 40]
    assert asked == [""] * 4
