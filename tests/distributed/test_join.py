"""Flags that fit together, and when the environment speaks of several processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Run
from looplm.distributed.join import COUNTS, LISTS, sign_of_others

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*COUNTS, *LISTS, "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "16"}, False),  # in an allocation, but not started by srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        (KUBERNETES, False),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_the_environment(variables: dict[str, str], several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (sign_of_others() is not None) == several


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--process-id 1", "--coordinator, --num-processes missing; give all of --coordinator, --num-processes, --pr"),
        ("--coordinator host --num-processes 2 --process-id 0", "--coordinator host is not HOST:PORT, e.g. 10.0.0.1:"),
        ("--coordinator a:1 --num-processes 2 --process-id 2", "--process-id 2 is not below --num-processes 2; count"),
    ],
)
def test_flags_that_do_not_fit(
    flags: str, message: str, command, tiny_run: Callable[..., Run], config_file: Callable, tmp_path: Path
) -> None:
    code, _, stderr = command("train", config_file(tiny_run()), "--workdir", tmp_path / "run", *flags.split())
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith(f"looplm: {message}")
    assert not (tmp_path / "run").exists()


def test_a_job_that_jax_does_not_know_is_refused(
    program, tiny_run: Callable[..., Run], config_file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every process would train by itself, in one folder."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    code, _, stderr = program.run("train", config_file(tiny_run()), "--workdir", tmp_path / "run")
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("looplm: SLURM_STEP_NUM_TASKS=2 speaks of several processes, but jax cannot tell which")
    assert not (tmp_path / "run").exists()
