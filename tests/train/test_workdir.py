"""What the run directory refuses."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.train.workdir import Workdir


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> None:
    with (disk / "filling").open("ab") as file:
        file.write(bytes(shutil.disk_usage(disk).free))


def test_a_full_disk_is_called_full(disk: Path, tiny_run: Callable[..., Run]) -> None:
    workdir = Workdir(disk / "run")
    full = f"workdir {disk}/run cannot be written: No space left on device; make room or give another$"
    with workdir.locked():
        fill(disk)
        with pytest.raises(UserError, match=full):
            workdir.claim(tiny_run(), {})
    fill(disk)
    with pytest.raises(UserError, match=full), workdir.locked():
        pass


def test_a_folder_that_cannot_be_made_wants_permissions() -> None:
    refused = re.escape("workdir /proc/run cannot be written: ") + ".*; mend its permissions or give another$"
    with pytest.raises(UserError, match=refused), Workdir(Path("/proc/run")).locked():
        pass


def test_a_resume_may_change_where_and_how_often_but_not_what(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    (workdir.checkpoints / "2").mkdir(parents=True)
    workdir.claim(tiny_run(), {})
    workdir.check_ours(tiny_run(**{"log.every_steps": 7, "loop.remat": "none", "mesh.data": 2}))
    refused = re.escape("holds a run with another config: optim.learning_rate=0.5 (stored: 0.01); give another")
    with pytest.raises(UserError, match=refused):
        workdir.check_ours(tiny_run(**{"log.every_steps": 7, "optim.learning_rate": 0.5}))
    with pytest.raises(UserError, match="to train longer, give another --workdir and init_from="):
        workdir.check_ours(tiny_run(num_steps=9))
