"""Two processes train like one, end together when one is lost, and go on with the same bits."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import looplm
from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics

pytestmark = pytest.mark.multiprocess

ROOT = Path(looplm.__file__).parents[1]
NUM_STEPS = 12
CHANGES = {
    "num_steps": NUM_STEPS,
    "checkpoint.every_steps": 3,
    "eval.every_steps": 6,
    "optim.optimizer.eps": 1e-4,  # else Adam makes a step of rounding errors where the gradient is nearly zero
    "mesh.data": 2,
    "mesh.fsdp": 4,
}
LIMIT_S = 60


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run(**CHANGES)


@pytest.fixture(scope="module")
def config(run: Run, write_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), run)


@pytest.fixture(scope="module")
def whole(config: Path, program, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run directory of two processes that were not disturbed, and what the local runner showed."""
    workdir = tmp_path_factory.mktemp("processes") / "whole"
    ended = on_two(config, program, workdir)
    assert ended.returncode == 0, ended.stdout
    return workdir, ended.stdout


@pytest.fixture(scope="module")
def by_one(run: Run, train_on, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process with as many devices."""
    workdir = tmp_path_factory.mktemp("processes") / "one"
    train_on(run, 8, workdir)
    return workdir


def on_two(config: Path, program, workdir: Path) -> subprocess.CompletedProcess[str]:
    """Trains in two processes of four devices, with the local runner."""
    command = [sys.executable, "-m", "looplm", "train", config, "--workdir", workdir, "--compiled", program.cache]
    return subprocess.run(
        [sys.executable, ROOT / "launch/local/run.py", "--processes", "2", "--devices", "4", "--", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    )  # fmt: skip


def start(config: Path, program, workdir: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        job = ("--coordinator", f"127.0.0.1:{probe.getsockname()[1]}", "--num-processes", 2)
    return [
        program.start("train", config, "--workdir", workdir, *job, "--process-id", index, devices=4) for index in (0, 1)
    ]


def wait_for_line(processes: list[subprocess.Popen[str]], metrics: Path, step: int) -> None:
    while not (metrics.exists() and f'{{"step": {step},' in metrics.read_text()):
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.005)


def assert_close(workdir: Path, expected: Path) -> None:
    losses, wanted = (by_step(folder, "train/loss") for folder in (workdir, expected))
    assert losses == pytest.approx(wanted, rel=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5),
        looplm.load(workdir).params,
        looplm.load(expected).params,
    )


def by_step(workdir: Path, name: str) -> dict[float, float]:
    return {row["step"]: row[name] for row in read_metrics(workdir / "metrics.jsonl") if name in row}


def test_two_processes_train_like_one(whole, by_one: Path) -> None:
    workdir, shown = whole
    assert_close(workdir, by_one)
    assert by_step(workdir, "eval/loss_depth_2") == pytest.approx(by_step(by_one, "eval/loss_depth_2"))
    # Every step once, and only process 0 speaks.
    assert [row["step"] for row in read_metrics(workdir / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, NUM_STEPS + 1)
    )
    assert "[0] step 12/12" in shown
    assert "[1] step" not in shown


@pytest.mark.parametrize(
    "lost",
    [
        (((1,), 4),),
        *(pytest.param(lost, marks=pytest.mark.slow) for lost in ((((0,), 4),), (((1,), 4), ((0, 1), 7)))),
    ],
    ids=["one", "first", "one-both"],
)
def test_a_lost_process_ends_the_others_and_a_restart_goes_on_with_the_same_bits(
    whole, config: Path, program, tmp_path: Path, lost: tuple
) -> None:
    """`lost`: which processes are killed, one start after the other, and after which step."""
    killed = tmp_path / "killed"
    for victims, step in lost:
        processes = start(config, program, killed)
        wait_for_line(processes, killed / "metrics.jsonl", step)
        for victim in victims:
            processes[victim].kill()
        for index, process in enumerate(processes):
            _, stderr = process.communicate(timeout=LIMIT_S)
            if index not in victims:
                assert process.returncode not in {0, -9}
                assert f"looplm: process {victims[0]} of 2 was lost" in stderr
    ended = on_two(config, program, killed)
    assert ended.returncode == 0, ended.stdout
    assert by_step(killed, "train/loss") == by_step(whole[0], "train/loss")
    jax.tree.map(np.testing.assert_array_equal, looplm.load(killed).params, looplm.load(whole[0]).params)


@pytest.mark.slow
def test_one_process_goes_on_from_what_two_have_saved(whole, run: Run, train_on, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(whole[0], tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "12")
    train_on(run, 8, workdir)
    assert_close(workdir, whole[0])


@pytest.mark.slow
def test_two_processes_go_on_from_what_one_has_saved(by_one: Path, config: Path, program, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(by_one, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "12")
    ended = on_two(config, program, workdir)
    assert ended.returncode == 0, ended.stdout
    assert f"resuming {workdir} after step 9" in ended.stdout
    assert_close(workdir, by_one)


def test_a_failing_process_ends_the_others_with_its_reason(config: Path, program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = on_two(config, program, tmp_path / "file" / "run")
    assert ended.returncode == 2
    assert "cannot be made" in ended.stdout
