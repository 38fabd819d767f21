"""The limit follows the steps, and nothing counts before the first step, nor while it is told to look away."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from looplm.train import watchdog
from looplm.train.watchdog import LEAST_S, TIMES_THE_MEDIAN, Watchdog


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which the process would have ended; the least limit is a fifth of a second."""
    codes: list[int] = []

    monkeypatch.setattr(watchdog, "end_process", lambda code, reason: codes.append(code))
    monkeypatch.setattr(watchdog, "LEAST_S", 0.2)
    return codes


def test_a_hang_shows_the_stacks_and_ends_the_process(ended, tmp_path: Path, capfd) -> None:
    with Watchdog(tmp_path) as dog:
        dog.beat(1)
        dog.beat(2)
        a_place_to_hang(ended)
    assert ended == [76]
    shown = capfd.readouterr().err
    (file,) = tmp_path.glob("stacks-*.txt")
    assert "in a_place_to_hang" in shown
    assert "in a_place_to_hang" in file.read_text()
    assert "no step was done for 0 s after step 2, so this process ends" in shown


def test_who_is_behind_is_named_long_before(ended, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    first = SimpleNamespace(goes_on=told.clear, stalled=told.append, behind=lambda: f"process 3 is behind {told}")
    monkeypatch.setattr(watchdog.Watch, "current", first)
    with Watchdog(tmp_path) as dog:
        dog.beat(6)
        dog.begin(7)
        dog.beat(6)
        a_place_to_hang(ended)
    said = capfd.readouterr().err
    assert "note: no step was done for 0 s: process 3 is behind [7]; 0 s are taken for a hang" in said
    assert said.index("note:") < said.index(
        "looplm: no step was done for 0 s after step 6; process 3 is behind [7], so"
    )


def a_place_to_hang(ended: list[int]) -> None:
    limit = time.monotonic() + 20
    while not ended and time.monotonic() < limit:
        time.sleep(0.01)


def test_nothing_counts_before_the_first_step(ended, tmp_path: Path) -> None:
    with Watchdog(tmp_path):
        time.sleep(0.5)
    assert ended == []


def test_nothing_counts_while_suspended(ended, tmp_path: Path) -> None:
    with Watchdog(tmp_path) as dog:
        dog.beat(1)
        with dog.suspended():
            time.sleep(0.5)
        dog.beat(2)
    assert ended == []
    assert dog.limit_s < 1, "the time of the suspension is no step's"


def test_the_limit_is_learned_and_never_below_a_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    dog = Watchdog(tmp_path)
    for step, seconds in enumerate((0, 5, 7, 100, 6, 6), start=1):
        now += seconds
        dog.beat(step)
    assert dog.limit_s == TIMES_THE_MEDIAN * 6
    for step in range(300):
        now += 0.01
        dog.beat(step)
    assert dog.limit_s == LEAST_S
