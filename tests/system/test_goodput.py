"""Parts of the wall-clock sum to what a clock outside says, over a restart too, and land where they belong."""

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from looplm.checkpoint.writer import CheckpointWriter
from looplm.config.schema import Run
from looplm.metrics.events import read_events
from looplm.metrics.sinks import read_metrics
from looplm.metrics.timing import whole
from looplm.train.batch import BatchLayout
from looplm.train.hooks import Evaluation
from looplm.train.trainer import Trainer
from tools import faults

CHANGES = {"num_steps": 6, "checkpoint.every_steps": 3, "eval.every_steps": 3, "log.every_steps": 2, "mesh.data": 8}
SLEEP_S = 1.0


class Stopped(Exception):
    pass


def stop() -> None:
    raise Stopped


def test_the_parts_sum_to_the_whole(
    tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep() -> None:
        time.sleep(SLEEP_S)

    # One save and one evaluation that take long, and one batch.
    faults.before_call(CheckpointWriter, "save", 1, sleep, patch=monkeypatch.setattr)
    faults.before_call(Evaluation, "__call__", 1, sleep, patch=monkeypatch.setattr)
    faults.before_call(BatchLayout, "place", 2, sleep, patch=monkeypatch.setattr)

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        faults.when_written(5, stop, patch=patch.setattr)
        with pytest.raises(Stopped):
            Trainer(tiny_run(**CHANGES), tmp_path, Console(file=io.StringIO())).train()
    between = time.monotonic()
    sleep()
    console = Console(file=io.StringIO(), width=500)
    Trainer(tiny_run(**CHANGES), tmp_path, console).train()
    total = time.monotonic() - began

    seconds = whole([event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "time"])
    assert sum(seconds.values()) == pytest.approx(total, rel=0.01)
    for part in ("data_wait", "checkpoint", "evaluation", "down"):
        assert seconds[part] >= SLEEP_S, part
    assert seconds["down"] < SLEEP_S + 0.5
    assert seconds["compile"] > 0.1
    assert seconds["lost"] > 0, "steps 4 and 5 were done again"
    assert seconds["step"] > 0
    assert between - began < total

    assert "\ngoodput " in console.file.getvalue()  # type: ignore[attr-defined]
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl") if "goodput/fraction" in row}
    assert list(rows) == [2, 4, 6]
    assert rows[6]["goodput/step_s"] == pytest.approx(seconds["step"], abs=0.5)


def test_the_end_does_not_wait_for_a_batch(
    tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, answered = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        ended.wait(30)
        answered.set()

    def leave() -> None:
        assert begun.wait(30), "batch 3 is asked for before step 1 is looked at"
        stop()

    faults.before_call(BatchLayout, "place", 3, hang, patch=monkeypatch.setattr)
    faults.when_written(1, leave, patch=monkeypatch.setattr)
    with pytest.raises(Stopped):
        Trainer(tiny_run(**CHANGES), tmp_path, Console(file=io.StringIO())).train()
    assert not answered.is_set(), "the end waited for the batch"
    ended.set()
    assert answered.wait(30)


def test_a_batch_is_read_while_the_step_before_is_looked_at(
    tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 3 is not ready before the numbers of step 1 are read, so the training thread must not wait for it."""
    looked = threading.Event()

    def wait() -> None:
        assert looked.wait(30), "the training thread waits for the batch"

    faults.before_call(BatchLayout, "place", 3, wait, patch=monkeypatch.setattr)
    faults.before_call(Trainer, "finish", 1, looked.set, patch=monkeypatch.setattr)
    Trainer(tiny_run(**CHANGES), tmp_path, Console(file=io.StringIO())).train()
