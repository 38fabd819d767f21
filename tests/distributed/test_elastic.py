"""A host lets its process train in one group after another: without who is lost, and exit codes keep their meaning."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import looplm
from looplm.distributed.elastic import train_with_those_left
from looplm.distributed.slurm import Place
from looplm.errors import UserError

HOST = """
import json, os, signal, sys, time
from pathlib import Path
from looplm.distributed import elastic, meeting
from looplm.distributed.slurm import Place

folder, number, count, code = Path(sys.argv[1]), *map(int, sys.argv[2:])
if "LOOPLM_GROUP" not in os.environ:
    meeting.BEAT_S, meeting.WINDOW_S = 0.05, 0.3
    saved = lambda: len(list(folder.glob("saved*")))
    sys.exit(elastic.train_with_those_left(Place("127.0.0.1:9", count, number), folder, saved))

# Trains: alone to the end that is asked for, with others until it is told.
signal.signal(signal.SIGTERM, lambda *_: (folder / "75").touch())
elastic.watch_over(iter([1, 2]), folder, number)
size = json.loads(os.environ["LOOPLM_GROUP"])["num_processes"]
(folder / f"{number}-in-{size}-{os.getpid()}").touch()
while size > 1:
    for told in (1, 75):
        if (folder / str(told)).exists():
            sys.exit(told)
    time.sleep(0.02)
sys.exit(code)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    hosts: list[subprocess.Popen[str]] = []

    def begin(number: int, count: int, code: int = 0) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOST, str(tmp_path), str(number), str(count), str(code)]
        environment = os.environ | {"PYTHONPATH": str(Path(looplm.__file__).parents[1])}
        hosts.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
        return hosts[-1]

    yield begin
    for host in hosts:
        host.kill()
        host.communicate()


def wait_for(folder: Path, pattern: str) -> int:
    """The number of the process that has left a file of this name."""
    limit = time.monotonic() + 20
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < limit, pattern
        time.sleep(0.02)
    return int(found[0].name.rpartition("-")[2])


@pytest.mark.parametrize("lost", [0, 1])
def test_who_is_killed_is_left_out(lost: int, start: Start, tmp_path: Path) -> None:
    hosts = [start(number, 2) for number in (0, 1)]
    victim, other = wait_for(tmp_path, f"{lost}-in-2-*"), wait_for(tmp_path, f"{1 - lost}-in-2-*")
    hosts[lost].kill()
    limit = time.monotonic() + 10
    while Path(f"/proc/{victim}").exists():  # what trains there ends with its host
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert Path(f"/proc/{other}").exists()
    (tmp_path / "1").touch()  # as the watch would
    _, said = hosts[1 - lost].communicate(timeout=20)
    assert hosts[1 - lost].returncode == 0
    assert said == f"note: 1 of 2 processes go on; without {lost}\n"
    wait_for(tmp_path, f"{1 - lost}-in-1-*")


def test_who_is_asked_to_stop_leaves_and_the_others_go_on(start: Start, tmp_path: Path) -> None:
    hosts = [start(number, 2) for number in (0, 1)]
    for number in (0, 1):
        wait_for(tmp_path, f"{number}-in-2-*")
    hosts[0].send_signal(signal.SIGTERM)
    assert [host.wait(timeout=20) for host in hosts] == [75, 0]


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (2, 1), (76, 1), (9, 3)])
def test_ends_that_are_final_and_crashes_that_come_again(code: int, starts: int, start: Start, tmp_path: Path) -> None:
    assert start(0, 1, code).wait(timeout=20) == code
    assert len(list(tmp_path.glob("0-in-1-*"))) == starts


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="run cannot be made \\(Not a directory\\); give another --workdir"):
        train_with_those_left(Place("127.0.0.1:9", 1, 0), tmp_path / "file" / "run", lambda: 0)
