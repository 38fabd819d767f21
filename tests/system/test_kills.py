"""A run that is killed in any phase, or at any moment, ends with the same bits as one that is not."""

import math
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import looplm
from looplm.checkpoint.seal import read_seal
from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics
from tests.reasoner import REASONER

NUM_STEPS = 14
CHANGES = {
    "num_steps": NUM_STEPS,
    "checkpoint.every_steps": 3,
    "checkpoint.keep_last": 1,
    "eval.every_steps": 6,
    "loop.depth": {"kind": "uniform", "max_loops": 3},
    "optim.ema_decay": 0.9,
}
ROWS_STAY = REASONER | {"loop.depth": "fixed"}
MEMORY = {"data.order": "streams", "model.memory": {"length": 24, "loops": "last"}}
COMPRESSED = MEMORY | {
    "model.memory": {"kind": "compressive", "length": 24, "compressed_length": 6, "rate": 4, "loops": "last"}
}
JOBS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "one-device": (1, 1, {}),
    "eight-devices": (1, 8, {}),
    "two-processes": (2, 4, {}),
    "rows-stay": (1, 1, ROWS_STAY),
    "rows-stay-on-eight": (1, 8, ROWS_STAY | {"mesh.data": 2, "mesh.fsdp": 4}),
    "rows-stay-in-two": (2, 4, ROWS_STAY),
    "memory": (1, 1, MEMORY),
    "compressed-in-two": (2, 4, COMPRESSED),
}
"""Processes, devices of each, and settings."""
TIMED = ("perf/", "data/wait_s", "ckpt/", "model/num_parameters", "model/num_active_parameters", "goodput/")
"""What is measured anew, or written with the first step after a start only."""
LAST_PHASES = (("commit", 1), ("prune", 1))
PHASES = (
    ("fetch", 1), ("fetch", 4), ("forward", 2), ("forward", 5), ("update", 3), ("snapshot", 1), ("snapshot", 2),
    ("write", 1), ("seal", 1), ("commit", 1), ("prune", 1), ("fetch", 1), ("write", 2), *LAST_PHASES,
)  # fmt: skip
DYING = str(Path(__file__).with_name("dying.py"))
MOMENTS = 50
LIMIT_S = 300


class Job:
    """A training run of one or two processes, as `processes` one after the other."""

    def __init__(self, program, config: Path, processes: int, devices: int):
        self.program, self.config, self.processes, self.devices = program, config, processes, devices

    def start(self, workdir: Path, phase: tuple[str, int] | None = None, victim: int = 0) -> list[subprocess.Popen]:
        flags: tuple[object, ...] = ()
        if self.processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                flags = ("--coordinator", f"127.0.0.1:{probe.getsockname()[1]}", "--num-processes", self.processes)
        return [
            self.program.start(
                *(map(str, phase) if phase and index == victim else ()),
                *("train", self.config, "--workdir", workdir, *flags),
                *(("--process-id", index) if flags else ()),
                devices=self.devices,
                entry=(DYING,) if phase and index == victim else ("-m", "looplm"),
            )
            for index in range(self.processes)
        ]

    def end(self, started: list[subprocess.Popen]) -> list[int]:
        for process in started:
            process.communicate(timeout=LIMIT_S)
        return [process.returncode for process in started]


@pytest.fixture(scope="module", params=JOBS.values(), ids=JOBS)
def job(request, program, tiny_run: Callable[..., Run], write_config, tmp_path_factory) -> Job:
    processes, devices, changes = request.param
    config = write_config(tmp_path_factory.mktemp("config"), tiny_run(**CHANGES | changes))
    return Job(program, config, processes, devices)


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert job.end(job.start(workdir)) == [0] * job.processes
    return workdir


def assert_same_end(workdir: Path, expected: Path) -> None:
    """Parameters, optimizer state, averaged weights and all that was logged, to the bit."""
    assert list(lines(workdir)) == list(lines(expected))
    for ema in (False, True):
        ours, theirs = looplm.load(workdir, ema=ema), looplm.load(expected, ema=ema)
        assert ours.step == theirs.step == NUM_STEPS
        jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    seals = [read_seal(folder / f"checkpoints/{NUM_STEPS}") for folder in (workdir, expected)]
    assert seals[0].arrays == seals[1].arrays
    sweeps = [{path.name: path.read_text() for path in (folder / "eval").iterdir()} for folder in (workdir, expected)]
    assert sweeps[0] == sweeps[1]


def lines(workdir: Path) -> Iterator[dict[str, float]]:
    for row in read_metrics(workdir / "metrics.jsonl"):
        yield {name: value for name, value in row.items() if not name.startswith(TIMED)}


def kill_in_phases(job: Job, workdir: Path, phases: tuple[tuple[str, int], ...]) -> None:
    for number, phase in enumerate(phases):
        # Process 0 alone seals and prunes.
        victim = number % job.processes if phase[0] not in {"seal", "commit", "prune"} else 0
        codes = job.end(job.start(workdir, phase, victim))
        assert codes[victim] == -signal.SIGKILL, (phase, codes)
    assert job.end(job.start(workdir)) == [0] * job.processes


@pytest.mark.slow
@pytest.mark.parametrize("job", [JOBS["rows-stay"]], indirect=True, ids=["rows-stay"])
def test_killed_while_a_checkpoint_is_made(job: Job, whole: Path, tmp_path: Path) -> None:
    kill_in_phases(job, tmp_path, LAST_PHASES)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_killed_in_every_phase(job: Job, whole: Path, tmp_path: Path) -> None:
    kill_in_phases(job, tmp_path, PHASES)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_killed_at_random_moments(job: Job, whole: Path, tmp_path: Path) -> None:
    """Runs are started and killed; one that gets to its end is compared, and the next begins in a new folder. Moments
    are within the time of the shortest start that has ended, or nearly all of them would be too late."""
    draw, kills, seconds = random.Random(job.devices), 0, math.inf
    while kills < MOMENTS:
        workdir = Path(tempfile.mkdtemp(dir=tmp_path))
        finished = False
        while not finished:
            begun, processes = time.monotonic(), job.start(workdir)
            if kills < MOMENTS and math.isfinite(seconds):
                time.sleep(draw.uniform(0.2, 1.0) * seconds)
                victim = draw.choice(processes)
                victim.kill()
                job.end(processes)
                kills += victim.returncode == -signal.SIGKILL
                finished = victim.returncode == 0
            else:
                finished = job.end(processes) == [0] * job.processes
                seconds = min(seconds, time.monotonic() - begun)
        assert_same_end(workdir, whole)
    assert kills == MOMENTS
