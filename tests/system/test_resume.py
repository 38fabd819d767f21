"""A run that is killed and started again ends with the same bits as one that is not."""

import itertools
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import looplm
from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics
from looplm.train.batch import BatchLayout
from looplm.train.hooks import Evaluation

NUM_STEPS = 12
CHANGES = {
    "num_steps": NUM_STEPS,
    "checkpoint.every_steps": 4,
    "loop.depth": {"kind": "uniform", "max_loops": 3},
}
KILLED_IN = ((1, 4), (5, 7), (8, 10))
"""First and last step after which a kill may come: before, after the first and after the second save."""


def kill_after(process: subprocess.Popen[str], metrics: Path, step: int, delay_s: float) -> int:
    """Kills a training process a little after it has written the line of `step`; returns the exit code."""
    while process.poll() is None and not has_line(metrics, step):
        time.sleep(0.002)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    return process.returncode


def has_line(metrics: Path, step: int) -> bool:
    return metrics.exists() and f'{{"step": {step},' in metrics.read_text()


def assert_same_end(workdir: Path, expected: Path) -> None:
    """Every step once, with the same loss, and the same last parameters; all to the bit."""
    rows, expected_rows = (read_metrics(folder / "metrics.jsonl") for folder in (workdir, expected))
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in expected_rows]
    ours, theirs = looplm.load(workdir), looplm.load(expected)
    assert ours.step == theirs.step == NUM_STEPS
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])  # killed at every moment of a save: test_kills; on another mesh: below
def test_a_killed_run_ends_with_the_same_bits(
    program, command, tiny_run: Callable[..., Run], config_file: Callable[[Run], Path], tmp_path: Path, devices: int
) -> None:
    config, whole, killed = config_file(tiny_run(**CHANGES)), tmp_path / "whole", tmp_path / "killed"
    assert program.run("train", config, "--workdir", whole, devices=devices).code == 0

    exit_codes = []
    for seed, steps in enumerate(KILLED_IN):
        moment = random.Random(seed)
        process = program.start("train", config, "--workdir", killed, devices=devices)
        exit_codes.append(kill_after(process, killed / "metrics.jsonl", moment.randint(*steps), 0.03 * moment.random()))
    assert -signal.SIGKILL in exit_codes
    assert program.run("train", config, "--workdir", killed, devices=devices).code == 0

    assert_same_end(killed, whole)


def test_a_finished_run_stays_as_it_is(
    command, finished_run: Path, tiny_run: Callable[..., Run], config_file: Callable[[Run], Path], tmp_path: Path
) -> None:
    workdir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = contents(workdir)
    code, stdout, stderr = command("train", config_file(tiny_run()), "--workdir", workdir)
    assert (code, stderr) == (0, "")
    assert "nothing to do: step 3 of 3 is done" in stdout
    assert contents(workdir) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stopped(Exception):
    """The run is stopped from outside."""


@contextmanager
def stopping(owner: type, method: str, *, after: int) -> Iterator[None]:
    """Inside, training is stopped when it calls a method once more than so often."""
    original, calls = getattr(owner, method), itertools.count()

    def call(*arguments: Any) -> Any:
        if next(calls) == after:
            raise Stopped
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, call)
        yield


@pytest.fixture(scope="module")
def stopped_after_a_save(train_on, tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory):
    """A run that is stopped on eight devices as it takes a batch after the first save, and ends on one device."""
    run, workdir = tiny_run(**CHANGES), tmp_path_factory.mktemp("stopped")
    with stopping(BatchLayout, "place", after=5), pytest.raises(Stopped):
        train_on(run, 8, workdir)
    return train_on(run, 1, workdir)


def test_another_mesh_goes_on_from_a_checkpoint(stopped_after_a_save, train_on, tiny_run) -> None:
    ours, theirs = stopped_after_a_save, train_on(tiny_run(**CHANGES), 1)
    losses = {row["step"]: row["train/loss"] for row in theirs.rows}
    for row in ours.rows:
        assert row["train/loss"] == pytest.approx(losses[row["step"]], rel=1e-5)
    assert ours.rows[-1]["step"] == NUM_STEPS


def test_a_stop_after_a_save_loses_no_line(stopped_after_a_save) -> None:
    assert stopped_after_a_save.column("step") == list(range(1, NUM_STEPS + 1))


def test_a_stop_before_an_evaluation_loses_none(train_on, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    run = tiny_run(**{"eval.every_steps": 3})
    with stopping(Evaluation, "__call__", after=0), pytest.raises(Stopped):
        train_on(run, 1, tmp_path)
    assert len(train_on(run, 1, tmp_path).column("eval/loss_depth_1")) == 1
