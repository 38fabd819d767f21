"""Flags that fit together, and when the environment speaks of several processes."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Run
from looplm.distributed import join
from looplm.distributed.join import COUNTS, LISTS, sign_of_others
from looplm.distributed.slurm import place_of_step

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
        ({"PMI_SIZE": "2"}, True),
        (KUBERNETES, False),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_the_environment(variables: dict[str, str], several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (sign_of_others() is not None) == several


STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[003-7],other",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "1",
}


def test_steps_of_one_allocation_meet_at_places_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    other = {"SLURM_JOB_ID": str(4242 + 4096)}
    for changed in ({}, {"SLURM_PROCID": "0"}, {"SLURM_STEP_ID": "1"}, other, {"SLURM_RESTART_COUNT": "1"}):
        for name, value in (STEP | changed).items():
            monkeypatch.setenv(name, value)
        places.append(place_of_step())
    assert [(place.num_processes, place.process_id) for place in places] == [(2, 1), (2, 0), (2, 1), (2, 1), (2, 1)]
    hosts, ports = zip(*(place.coordinator.split(":") for place in places), strict=True)
    assert set(hosts) == {"node003"}
    assert ports[0] == ports[1]
    assert len(set(ports)) == 4
    assert all(1024 < int(port) < 65536 for port in ports)
    monkeypatch.delenv("SLURM_PROCID")
    assert place_of_step() is None


@pytest.mark.parametrize(
    ("tasks", "node", "local", "visible", "taken"),
    [
        ("8(x2)", "1", "5", None, [5]),
        ("8(x2)", "1", "5", "0,1,2,3,4,5,6,7", [5]),
        ("1(x2)", "0", "0", "0,1,2,3,4,5,6,7", None),  # a process a node has all of its GPUs
        ("8(x2)", "0", "5", "5", None),  # --gpus-per-task: it sees no other
        ("2", "0", "1", "0,1,2,3", [2, 3]),
        ("4,1", "1", "0", "0,1", None),
        ("4,2", "1", "1", "0,1", [1]),
    ],
)
def test_a_process_takes_its_share_of_a_node(
    tasks: str, node: str, local: str, visible: str | None, taken: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (STEP | {"SLURM_NODEID": node, "SLURM_LOCALID": local}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    place = place_of_step()
    assert place is not None
    assert place.local_devices == taken
    seen: dict = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **named: seen.update(named))
    join._initialize(None, None, None)
    assert (seen["local_device_ids"], seen["cluster_detection_method"]) == (taken, "deactivate")


def test_a_port_that_is_taken_is_named(command, tiny_run: Callable[..., Run], config_file, tmp_path: Path) -> None:
    """Whoever listens there is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = f"--coordinator 127.0.0.1:{port} --num-processes 2 --process-id 0".split()
        code, _, stderr = command("train", config_file(tiny_run()), "--workdir", tmp_path / "run", *flags)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith(
        f"looplm: port {port} of process 0 cannot be had (Address already in use): another job may"
    )


def test_processes_of_a_job_ask_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: seen.append(os.environ.get("http_proxy")))
    join._initialize("127.0.0.1:0", 2, 1)
    assert (seen, os.environ["http_proxy"]) == ([None], "http://127.0.0.1:9")


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
