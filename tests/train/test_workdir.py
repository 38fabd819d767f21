"""What the run directory refuses."""

import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from looplm.checkpoint.seal import Seal, write_seal
from looplm.config.schema import Run, Source
from looplm.errors import UserError
from looplm.train.trainer import Trainer
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


@pytest.fixture
def saved(tiny_run: Callable[..., Run], tmp_path: Path) -> Callable[..., Trainer]:
    """Makes the trainer of a run; `saved(2, ...)` also what a checkpoint of that step leaves of it but for arrays."""

    def make(step: int | None = None, **changes: object) -> Trainer:
        run = tiny_run(**changes)
        trainer = Trainer(run, tmp_path / "run", Console(file=io.StringIO(), width=1000))
        if step is not None:
            folder = trainer.workdir.checkpoints / f"{step}"
            folder.mkdir(parents=True)
            trainer.workdir.claim(run, {})
            facts = {"seed": run.seed, "saved_at": "", "metrics": {}, "arrays": {}, "files": {}}
            write_seal(folder, Seal(step=step, data=trainer.mixture.fingerprint, **facts))
        return trainer

    return make


def mixed(**folders: Path) -> tuple[Source, ...]:
    """Sources of a mixture, of which `later` is read from step 2 on."""
    return tuple(
        Source(name=name, data=str(folder), weight={2: 1.0} if name == "later" else 1.0)
        for name, folder in folders.items()
    )


def test_data_that_was_moved_is_read_where_it_is_now(
    saved: Callable[..., Trainer], tiny_data: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_data / "train", tmp_path / "moved")
    saved(2)
    assert not [note for note in saved().notes() if " is read" in note]
    assert f"the data of train is read from {moved} now; until here the run read it from {tiny_data}/train" in [
        *saved(**{"data.train": str(moved)}).notes()
    ]
    with pytest.raises(UserError, match=rf"checkpoint 2 in .* was trained on another dataset than {tiny_data}/val"):
        saved(**{"data.train": str(tiny_data / "validation")})


def test_sources_that_were_moved_are_told_and_those_to_come_may_be_others(
    saved: Callable[..., Trainer], tiny_data: Path, tmp_path: Path
) -> None:
    train, held_out = tiny_data / "train", tiny_data / "validation"
    moved = shutil.copytree(train, tmp_path / "moved")
    saved(2, **{"data.train": mixed(a=train, b=held_out, later=train)})
    notes = saved(**{"data.train": mixed(a=moved, b=held_out, later=held_out)}).notes()
    told = [note.split(" is read")[0] for note in notes if " is read" in note]
    assert told == ["the data of a", "the data of later"]
    with pytest.raises(UserError, match="was trained on another dataset"):
        saved(**{"data.train": mixed(a=held_out, b=held_out, later=train)})


def test_other_data_at_the_same_place_is_refused(
    saved: Callable[..., Trainer], tiny_data: Path, tmp_path: Path
) -> None:
    place = {"data.train": str(tmp_path / "place")}
    shutil.copytree(tiny_data / "train", tmp_path / "place")
    saved(2, **place)
    shutil.rmtree(tmp_path / "place")
    shutil.copytree(tiny_data / "validation", tmp_path / "place")
    with pytest.raises(UserError, match="was trained on another dataset"):
        saved(**place)


def test_a_seal_that_cannot_be_read_is_left_to_the_restore(saved: Callable[..., Trainer], tiny_data: Path) -> None:
    made = saved(2)
    (made.workdir.checkpoints / "2" / "seal.json").write_text("{")
    saved(**{"data.train": str(tiny_data / "validation")})
