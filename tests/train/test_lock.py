"""One job at a time in a workdir, whatever became of the one before."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Run
from looplm.train import lock
from looplm.train.lock import only_one

HOLD = "import sys, pathlib, time; from looplm.train.lock import only_one\nwith only_one(pathlib.Path(sys.argv[1])): "


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder until it is killed."""
    code = f"{HOLD}print('held', flush=True); time.sleep(600)"
    environment = os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_job_is_refused_before_it_writes_until_the_first_is_gone(
    command, config_file: Callable[[Run], Path], tiny_run: Callable[..., Run], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    first = holder(workdir)
    try:
        code, _, stderr = command("train", config_file(tiny_run()), "--workdir", workdir)
        assert code == 2
        assert stderr == (
            f"looplm: workdir {workdir} is in use by process {first.pid} on {socket.gethostname()}; "
            "wait for it or stop it, or give another --workdir\n"
        )
        assert [path.name for path in workdir.iterdir()] == [".lock"]
    finally:
        first.kill()
        first.communicate()
    with only_one(workdir):
        pass


def test_an_error_gives_it_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), only_one(tmp_path):
            raise KeyError
    assert (tmp_path / ".lock").read_bytes() == b""


def test_without_locks_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with only_one(tmp_path):
        assert capsys.readouterr().err == (
            f"looplm: workdir {tmp_path} cannot be locked (No locks available): let no second job train in it\n"
        )
