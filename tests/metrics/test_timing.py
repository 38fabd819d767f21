"""Every moment belongs to one part, over several processes too."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from looplm.metrics import timing
from looplm.metrics.events import Events, read_events
from looplm.metrics.timing import PARTS, Stopwatch, Timekeeper, goodput, line, process_started, whole


class Clock:
    """Time that only goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(timing.time, "time", lambda: self.now)
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def used(seconds: dict[str, float]) -> dict[str, float]:
    return {part: value for part, value in seconds.items() if value}


def test_parts_inside_parts_are_taken_out_of_them(clock: Clock) -> None:
    watch = Stopwatch(started=998.0)
    clock.now += 1
    with watch.during("compile"):
        clock.now += 5
    watch.switch("step")
    clock.now += 10
    with suppress(OSError), watch.during("checkpoint"):
        clock.now += 2
        with watch.during("data_wait"):
            clock.now += 4
        raise OSError("full")
    clock.now += 1
    assert used(watch.seconds()) == {"init": 3, "compile": 5, "step": 11, "checkpoint": 2, "data_wait": 4}
    assert sum(watch.seconds().values()) == clock.now - watch.started


def test_a_restart_counts_what_is_done_again_and_the_time_between(clock: Clock, tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    first = Timekeeper(events)
    clock.now += 3
    for step in (1, 2, 3):
        first.begin(step)
        clock.now += 10
        first.note(step)
        first.note(step, every_s=60)  # too early for another
    clock.now += 7  # killed here, seven seconds after its last word, and started again later
    clock.now += 100
    second = Timekeeper(events)
    assert second.reached == 3
    clock.now += 2
    for step in (3, 4):
        second.begin(step)
        clock.now += 10
    second.note(4)
    seconds = whole(events.read("time"))
    assert used(seconds) == {"init": 5, "step": 40, "lost": 10, "down": 107}
    assert sum(seconds.values()) == clock.now - first.started
    assert seconds == second.whole()
    assert goodput(seconds) == pytest.approx(40 / 162)
    assert (
        line(seconds)
        == "goodput 24.7% of 162.0 s: down 107.0 s, steps 40.0 s, steps done again 10.0 s, setting up 5.0 s"
    )
    assert second.metrics() == {"goodput/fraction": pytest.approx(40 / 162)} | {
        f"goodput/{part}_s": seconds[part] for part in PARTS
    }


def test_a_run_without_times_has_no_whole() -> None:
    assert whole([]) == {}


def test_a_process_knows_when_it_began() -> None:
    before = time.time()
    code = "import time; time.sleep(0.3); from looplm.metrics.timing import process_started; print(process_started())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert before - 0.02 <= float(shown.stdout) < before + 0.3
    assert process_started() < before


def test_a_line_that_was_cut_off_swallows_no_other(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    events.add("skipped", step=1)
    with events.path.open("a") as file:
        file.write('{"kind": "skip')
    events.add("skipped", step=2)
    assert [event["step"] for event in events.read("skipped")] == [1, 2]
    assert read_events(tmp_path / "missing.jsonl") == []
