"""An elastic job loses a process and goes on without it, with the losses of a run that nothing happened to."""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

QUICK = (
    "import looplm.distributed.elastic as elastic, looplm.distributed.meeting as meeting\n"
    "meeting.WINDOW_S, elastic.LOOK_S = 2.0, 0.5\n"
    "from looplm.cli import main\nmain()"
)
"""`looplm` that waits for those who are lost only for moments."""
LIMIT_S = 120


def changes(processes: int, num_steps: int) -> dict[str, object]:
    return {
        "num_steps": num_steps,
        "checkpoint.every_steps": 3,
        "eval.every_steps": 0,
        "data.batch_tokens": 192,  # 12 sequences
        "optim.optimizer.eps": 1e-4,  # else Adam makes a step of rounding errors where the gradient is nearly zero
        "mesh.data": processes,
        "mesh.fsdp": 2,
    }


class Job:
    """Processes of two devices each."""

    def __init__(self, program, config: Path, workdir: Path, count: int):
        self.program, self.config, self.workdir, self.count = program, config, workdir, count
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        self.running = [self.start(number) for number in range(count)]

    def start(self, number: int) -> subprocess.Popen[str]:
        flags = ("--coordinator", self.coordinator, "--num-processes", self.count, "--process-id", number)
        words = ("train", self.config, "--workdir", self.workdir, "--elastic", *flags)
        return self.program.start(*words, devices=2, entry=("-c", QUICK))

    def wait_for(self, step: int) -> None:
        metrics = self.workdir / "metrics.jsonl"
        while not (metrics.exists() and f'{{"step": {step},' in metrics.read_text()):
            assert any(process.poll() is None for process in self.running), self.said()
            time.sleep(0.02)

    def said(self) -> list[str]:
        return [process.communicate(timeout=LIMIT_S)[1] for process in self.running]

    def codes(self) -> list[int]:
        return [process.returncode for process in self.running]


def losses(workdir: Path) -> dict[int, float]:
    rows = read_metrics(workdir / "metrics.jsonl")
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.parametrize(
    ("count", "lost"),
    [(2, 0), (2, 1), (3, 0), (3, 2)],
)
def test_those_that_are_left_go_on(
    count: int, lost: int, tiny_run: Callable[..., Run], config_file, program, train_on, tmp_path: Path
) -> None:
    run = tiny_run(**changes(count, num_steps=12))
    job = Job(program, config_file(run), tmp_path / "run", count)
    job.wait_for(4)
    job.running[lost].kill()
    said = "".join(job.said())
    assert job.codes() == [-9 if number == lost else 0 for number in range(count)], said
    assert f"note: {count - 1} of {count} processes go on; without {lost}" in said
    whole = train_on(run, 2 * count)
    assert losses(tmp_path / "run") == pytest.approx(dict(enumerate(whole.column("train/loss"), 1)), rel=1e-5)


def test_a_process_that_comes_back_is_taken_in(
    tiny_run: Callable[..., Run], config_file, program, tmp_path: Path
) -> None:
    endless = {"num_steps": 10**6, "checkpoint.every_steps": 50, "log.every_steps": 10**6}
    job = Job(program, config_file(tiny_run(**changes(2, 1) | endless)), tmp_path / "run", 2)
    job.wait_for(4)
    job.running[0].kill()
    job.running[0].wait()
    job.wait_for(100)
    job.running[0] = job.start(0)
    plan = tmp_path / "run" / ".group" / "plan.json"
    while len(json.loads(plan.read_text())["members"]) < 2:
        assert job.running[1].poll() is None, job.said()
        time.sleep(0.1)
    last = max(losses(tmp_path / "run"))
    while max(losses(tmp_path / "run")) < last + 5:
        assert job.running[1].poll() is None, job.said()
        time.sleep(0.1)
    for process in job.running:
        process.terminate()
    said = "".join(job.said())
    assert job.codes() == [75, 75], said
    assert "note: process 0 came back: the run is saved and goes on with all" in said
    assert sorted(losses(tmp_path / "run")) == list(range(1, max(losses(tmp_path / "run")) + 1))
