"""Checkpoints that were moved to another disk and linked back, as a run, an evaluation and a removal meet them."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import looplm
from looplm.config.schema import Checkpoint, Run
from looplm.errors import UserError
from looplm.train.trainer import Trainer


@pytest.fixture
def workdir(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, whose checkpoints are of steps 2 and 3."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return tmp_path / "archive"


def move(path: Path, archive: Path) -> Path:
    """Moves a folder to the archive and links it back. Returns where it is now."""
    target = archive / f"moved-{path.name}"
    shutil.move(path, target)
    path.symlink_to(target)
    return target


def train(run: Run, workdir: Path) -> str:
    """Returns what the console showed."""
    shown = io.StringIO()
    Trainer(run, workdir, Console(file=shown, soft_wrap=True)).train()
    return shown.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moved", [("checkpoints/3",), ("checkpoints/2", "checkpoints/3"), ("checkpoints",), (".",)])
def test_what_is_linked_is_there(
    moved: tuple[str, ...], workdir: Path, archive: Path, tiny_run: Callable[..., Run], command
) -> None:
    for name in moved:
        move(Path(os.path.normpath(workdir / name)), archive)
    metrics = (workdir / "metrics.jsonl").read_bytes()
    code, stdout, stderr = command("checkpoint", "ls", workdir)
    assert (code, [line.split()[0] for line in stdout.splitlines()]) == (0, ["2", "3"]), stderr
    assert command("checkpoint", "verify", workdir).code == 0
    assert looplm.load(workdir).step == 3
    assert looplm.load(workdir / "checkpoints/3").step == 3
    assert "nothing to do: step 3 of 3 is done" in train(tiny_run(), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_the_list_says_where_a_link_leads(workdir: Path, archive: Path, command) -> None:
    target = move(workdir / "checkpoints/2", archive)
    two, three = command("checkpoint", "ls", workdir).stdout.splitlines()
    assert two.endswith(f", a link to {target}")
    assert "link" not in three


@pytest.mark.parametrize("gone", ["checkpoints/3", "checkpoints", "."])
def test_a_link_to_nothing_is_no_older_state(
    gone: str, workdir: Path, archive: Path, tiny_run: Callable[..., Run], command
) -> None:
    link = Path(os.path.normpath(workdir / gone))
    target = move(link, archive)
    target.rename(target.with_name("unmounted"))
    before = contents(workdir)
    with pytest.raises(UserError, match=f"^{link} is a link to {target}, which is not there; mount that disk or mend"):
        train(tiny_run(), workdir)
    assert contents(workdir) == before
    if gone == "checkpoints/3":
        code, stdout, _ = command("checkpoint", "ls", workdir)
        assert (code, stdout.splitlines()[1]) == (0, f"3  damaged: it is a link to {target}, which is not there")
        with pytest.raises(UserError, match=f"3: it is a link to {target}, which is not there.; use another one: .2.$"):
            looplm.load(workdir, step=3)


def test_a_link_to_what_is_no_checkpoint_is_named(workdir: Path, archive: Path, tiny_run: Callable[..., Run]) -> None:
    """The disk is not mounted, and its mount point is empty."""
    target = move(workdir / "checkpoints/3", archive)
    shutil.rmtree(target)
    target.mkdir()
    with pytest.raises(UserError, match=f"checkpoints/3 is a link to {target}, which is not there"):
        train(tiny_run(), workdir)


def test_a_damaged_checkpoint_behind_a_link_is_left_as_it_is(
    workdir: Path, archive: Path, tiny_run: Callable[..., Run], command
) -> None:
    target = move(workdir / "checkpoints/3", archive)
    (target / "config.json").write_text("{}")
    damaged, shown = contents(target), io.StringIO()
    trainer = Trainer(tiny_run(), workdir, Console(file=shown, soft_wrap=True))
    assert trainer.saving.restore_or_create()[1] == 2
    assert "checkpoint 3 is passed over: config.json has 2 bytes" in shown.getvalue()
    assert (workdir / "checkpoints/3.damaged").readlink() == target
    code, stdout, _ = command("checkpoint", "rm", workdir, "--damaged")
    left = f"removed {workdir / 'checkpoints/3.damaged'}, a link to {target}, which is left as it is\n"
    assert (code, stdout) == (0, left)
    assert contents(target) == damaged


def test_a_link_is_removed_alone(workdir: Path, archive: Path, command) -> None:
    target = move(workdir / "checkpoints/2", archive)
    before = contents(target)
    assert command("checkpoint", "rm", workdir, 2).code == 0
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["3"]
    assert contents(target) == before


def test_a_link_to_the_latest_names_a_checkpoint(workdir: Path, archive: Path, command) -> None:
    latest = workdir / "checkpoints/latest"
    latest.symlink_to("3")
    move(workdir / "checkpoints/3", archive)
    (archive / "best").symlink_to(latest)
    assert [looplm.load(path).step for path in (latest, archive / "best", workdir)] == [3, 3, 3]
    assert [line.split()[0] for line in command("checkpoint", "ls", workdir).stdout.splitlines()] == ["2", "3"]
    latest.unlink()
    latest.symlink_to("2")
    assert looplm.load(latest).step == 2


def test_checkpoints_that_have_vanished_do_not_begin_a_run_anew(workdir: Path, tiny_run: Callable[..., Run]) -> None:
    """Without a link: an empty mount point, a folder that was moved."""
    checkpoints, metrics = workdir / "checkpoints", (workdir / "metrics.jsonl").read_bytes()
    shutil.move(checkpoints / "3", workdir / "kept")
    assert (
        f"note: checkpoint 3, the last that was saved, is not in {checkpoints} any more; the run goes on from step 2"
        in [f"note: {note}" for note in Trainer(tiny_run(), workdir, Console(file=io.StringIO())).notes()]
    )
    shutil.rmtree(checkpoints)
    told = f"^{checkpoints} holds no checkpoint, and step 3 was saved there .*mounted"
    for make in (lambda: None, checkpoints.mkdir):
        make()
        with pytest.raises(UserError, match=told):
            train(tiny_run(), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_save_and_retention_leave_links_alone(
    workdir: Path, archive: Path, tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links that are there when the run begins, and links that come while it goes on."""
    run = tiny_run(checkpoint=Checkpoint(keep_last=1))
    target = move(workdir / "checkpoints/2", archive)
    before, shown = contents(target), io.StringIO()
    saving = Trainer(run, workdir, Console(file=shown, soft_wrap=True)).saving
    state, _ = saving.restore_or_create()
    saving.save(4, state, {})
    saving.require(4)
    while_it_runs = move(workdir / "checkpoints/4", archive)
    kept = contents(while_it_runs)
    (workdir / "checkpoints/5").symlink_to(archive / "elsewhere")
    saving.save(5, state, {})
    with pytest.raises(UserError, match=f"checkpoint 5 in .* could not be saved: {workdir}/checkpoints/5 is there alr"):
        saving.require(5)
    for step in (6, 7):
        saving.save(step, state, {})
        saving.require(step)
    saving.close()
    left = {path.name: path.is_symlink() for path in (workdir / "checkpoints").iterdir()}
    assert left == {"2": True, "3": False, "4": True, "5": True, "7": False}  # 3 is what it went on from
    assert (contents(target), contents(while_it_runs)) == (before, kept)
    assert not (archive / "elsewhere").exists()
