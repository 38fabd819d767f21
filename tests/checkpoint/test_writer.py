"""What a run leaves on the disk, and how it gets on with a disk that does not do its part."""

import itertools
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from looplm.checkpoint import folder as names
from looplm.checkpoint import seal as seal_module
from looplm.checkpoint import writer as writer_module
from looplm.checkpoint.digest import digests, leaves_of
from looplm.checkpoint.reader import CheckpointReader, first_line
from looplm.checkpoint.seal import digest_file, list_files, read_seal
from looplm.checkpoint.writer import CheckpointWriter
from looplm.config.schema import Checkpoint
from looplm.errors import UserError
from tests.checkpoint.conftest import FACTS, assert_equal, noise


@pytest.fixture
def said() -> list[str]:
    return []


def save(writer: CheckpointWriter, trees: Any, *steps: int, **metrics: float) -> None:
    for step in steps:
        writer.save(step, trees, {"eval/loss_depth_3": metrics[f"at_{step}"]} if f"at_{step}" in metrics else {})
        writer.wait()


def test_what_was_saved_comes_back(writer_of: Callable[..., CheckpointWriter], small, tmp_path: Path) -> None:
    trees, writer = noise(small, 0), writer_of()
    save(writer, trees, 3, at_3=float("nan"))
    writer.require(3)
    restored = CheckpointReader(tmp_path / "checkpoints").restore(small)
    assert_equal(restored.trees, trees)
    seal = restored.seal
    assert (seal.step, seal.seed, seal.data, seal.metrics, seal.format) == (3, FACTS.seed, FACTS.data, {}, 1)
    assert (tmp_path / "checkpoints/3/config.json").read_text() == FACTS.config
    assert set(seal.files) == set(list_files(tmp_path / "checkpoints/3")) - {"seal.json"}


def test_arrays_are_digested_before_they_are_written(
    writer_of: Callable[..., CheckpointWriter], small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that changes on its way to the disk, of which no file digest can know."""
    writer = writer_of()
    save(writer, noise(small, 0), 1)
    original = writer._orbax.save

    def save_something_else(path: Path, *, args: Any, force: bool) -> None:
        changed = jax.tree.map(lambda x: x, args["params"].item)
        changed["core"]["kernel"] = changed["core"]["kernel"].at[5, 3].add(1.0)
        args["params"].item = changed
        original(path, args=args, force=force)

    monkeypatch.setattr(writer._orbax, "save", save_something_else)
    save(writer, noise(small, 1), 2)
    lines: list[str] = []
    restored = CheckpointReader(tmp_path / "checkpoints", lines.append).restore(small)
    assert restored.seal.step == 1
    assert lines == ["checkpoint 2 is passed over: params core.kernel holds other values than were saved"]


@pytest.mark.parametrize("lacking", [os.W_OK, os.X_OK], ids=["write", "enter"])
def test_a_folder_that_may_not_be_written_or_entered_is_no_place_for_a_checkpoint(
    lacking: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may do everything: what the system would answer is answered here."""
    assert names.refusal(tmp_path, 0) == ""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & lacking)
    assert names.refusal(tmp_path, 0) == f"{tmp_path} cannot be written to"


@pytest.mark.parametrize(
    ("error", "gist"),
    [
        (ValueError("\n  one thing\nand its stack"), "one thing"),
        (KeyError(), "KeyError"),
        (RuntimeError("it failed\n[OS error 28: full]"), "No space left on device (it failed)"),
    ],
)
def test_the_gist_of_an_error_of_a_library_is_one_line(error: Exception, gist: str) -> None:
    assert first_line(error) == gist


def test_retention_goes_on_with_what_is_there(writer_of: Callable[..., CheckpointWriter], small, tmp_path) -> None:
    config = Checkpoint(keep_last=1, keep_every=4, keep_best=1)
    trees, best = noise(small, 0), {"best_metric": "eval/loss_depth_3"}
    save(writer_of(config, **best), trees, 1, 2, 3, 4, 5, at_2=1.0, at_3=2.0)
    assert names.steps(tmp_path / "checkpoints") == [2, 4, 5]
    save(writer_of(config, protected=5, **best), trees, 6, 7, at_6=0.5)
    assert names.steps(tmp_path / "checkpoints") == [4, 5, 6, 7]


def test_a_save_that_is_cut_off_leaves_no_checkpoint(
    writer_of: Callable[..., CheckpointWriter], small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    folder, trees = tmp_path / "checkpoints", noise(small, 0)
    writer = writer_of(report=said.append)
    save(writer, trees, 1)
    monkeypatch.setattr(writer_module, "write_seal", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    monkeypatch.setattr(writer_module.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(writer_module, "SWEEPS", 1)
    save(writer, trees, 2)
    assert said == ["checkpoint 2 was not saved: [Errno 28] No space left; training goes on, the next save is the "
                    "next try"]  # fmt: skip
    assert (names.steps(folder), names.remains(folder)) == ([1], ["2.writing"])
    monkeypatch.undo()
    (folder / "1.deleting").mkdir()
    (folder / "7.writing.orbax-checkpoint-tmp").mkdir()
    said.clear()
    names.clean(folder, said.append)
    assert [line.split(",")[0] for line in said] == [
        f"removed {folder / name}" for name in ("1.deleting", "2.writing", "7.writing.orbax-checkpoint-tmp")
    ]
    assert [path.name for path in folder.iterdir()] == ["1"]


def test_what_is_still_written_to_after_a_failure_goes_too(
    writer_of: Callable[..., CheckpointWriter], small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the library may make a file while the folder is being removed."""
    folder, remove, tries = tmp_path / "checkpoints", shutil.rmtree, []

    def remove_and_write(path: Path, **options: Any) -> None:
        remove(path, **options)
        tries.append(path.name)
        if len(tries) < 3:
            path.mkdir()

    writer = writer_of()
    (folder / "1.deleting").mkdir()  # `looplm checkpoint rm` is at work on it
    monkeypatch.setattr(writer_module, "write_seal", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    monkeypatch.setattr(writer_module.shutil, "rmtree", remove_and_write)
    save(writer, noise(small, 0), 2)
    assert tries == ["2.writing"] * 3
    assert [path.name for path in folder.iterdir()] == ["1.deleting"]


def test_what_a_failed_save_leaves_is_gone_before_the_next(
    writer_of: Callable[..., CheckpointWriter], small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, writer = tmp_path / "checkpoints", writer_of()

    def fail(path: Path, **_: Any) -> None:
        path.with_name("1.writing.orbax-checkpoint-tmp").mkdir()
        raise OSError(28, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr(writer._orbax, "save", fail)
        save(writer, noise(small, 0), 1)
    assert names.remains(folder) == ["1.writing.orbax-checkpoint-tmp"]
    save(writer, noise(small, 0), 2)
    assert [path.name for path in folder.iterdir()] == ["2"]


@pytest.fixture
def disk(small_disk: Callable[[str], Path]) -> Path:
    """A folder on a disk of 2 MB."""
    return small_disk("2m")


def on_disk(disk: Path, small: Any, said: list[str]) -> CheckpointWriter:
    (disk / "checkpoints").mkdir()
    return CheckpointWriter(disk / "checkpoints", Checkpoint(), FACTS, small, report=said.append)


def test_a_full_disk(disk: Path, small, said: list[str]) -> None:
    """Seen beforehand, and come upon in the middle; either way the last checkpoint stays and the next save works."""
    writer, trees = on_disk(disk, small, said), noise(small, 0)
    save(writer, trees, 1)
    before = {name: digest_file(disk / "checkpoints/1", name) for name in list_files(disk / "checkpoints/1")}

    fill(disk, leaving=0)
    save(writer, trees, 2)
    assert said[-1].startswith(f"checkpoint 2 was not saved: {disk / 'checkpoints'} has 0 MB free, and 0 MB are needed")
    with pytest.raises(UserError, match=r"checkpoint 2 in .* the newest that is saved is 1; mend that and give"):
        writer.require(2)

    fill(disk, leaving=writer._num_bytes + 4096)
    save(writer, trees, 3)
    assert "checkpoint 3 was not saved: " in said[-1]
    assert "No space left on device" in said[-1]
    assert sorted(path.name for path in (disk / "checkpoints").iterdir()) == ["1"]

    (disk / "filling").unlink()
    save(writer, trees, 4)
    writer.require(4)
    reader = CheckpointReader(disk / "checkpoints", said.append)
    assert reader.verified(1).files == {name: file for name, file in before.items() if name != "seal.json"}
    assert reader.restore(small).seal.step == 4


def fill(disk: Path, *, leaving: int) -> None:
    (disk / "filling").unlink(missing_ok=True)
    (disk / "filling").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - leaving)))


def test_a_disk_that_may_not_be_written(disk: Path, small, said: list[str]) -> None:
    writer, trees = on_disk(disk, small, said), noise(small, 0)
    save(writer, trees, 1)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    save(writer, trees, 2)
    assert said == [f"checkpoint 2 was not saved: {disk / 'checkpoints'} cannot be written to; training goes on, "
                    "the next save is the next try"]  # fmt: skip
    assert CheckpointReader(disk / "checkpoints").restore(small).seal.step == 1
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    save(writer, trees, 3)
    writer.require(3)


def test_a_folder_that_is_gone(writer_of: Callable[..., CheckpointWriter], small, said: list[str], tmp_path) -> None:
    writer, trees = writer_of(report=said.append), noise(small, 0)
    save(writer, trees, 1)
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    save(writer, trees, 2)
    assert said[-1].startswith(f"checkpoint 2 was not saved: {tmp_path / 'checkpoints'} is gone; training goes on")
    (tmp_path / "moved").rename(tmp_path / "checkpoints")
    save(writer, trees, 3)
    assert names.steps(tmp_path / "checkpoints") == [1, 3]


def test_a_slow_disk_leaves_saves_out(
    writer_of: Callable[..., CheckpointWriter], small, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(writer_module, "PATIENCE_S", 0.01)
    may_go_on = threading.Event()
    monkeypatch.setattr(writer_module, "list_files", lambda path: may_go_on.wait() and list_files(path))
    writer, trees = writer_of(report=said.append), noise(small, 0)
    assert [writer.save(step, trees) for step in (1, 2, 3)] == [True, False, False]
    assert [line.partition(",")[0] for line in said] == [
        f"checkpoint {step} was not saved: the one before is still being written" for step in (2, 3)
    ]
    may_go_on.set()
    writer.wait()
    assert writer.save(4, trees)
    writer.require(4)
    assert names.steps(tmp_path / "checkpoints") == [1, 4]


def test_a_save_that_was_left_out_is_missed(writer_of: Callable[..., CheckpointWriter], small) -> None:
    writer = writer_of()
    with pytest.raises(UserError, match=r"checkpoint 5 in .* could not be saved: it was left out; none is saved; mend"):
        writer.require(5)
    save(writer, noise(small, 0), 4)
    writer.require(4)
    with pytest.raises(UserError, match="it was left out; the newest that is saved is 4; mend"):
        writer.require(5)


def test_who_closes_waits_for_what_is_being_written(
    writer_of: Callable[..., CheckpointWriter], small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(writer_module, "list_files", lambda path: time.sleep(0.3) or list_files(path))
    writer = writer_of()
    writer.save(1, noise(small, 0))
    writer.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_folder_may_be_named_from_where_one_is(small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path("checkpoints")
    here.mkdir()
    writer, trees = CheckpointWriter(here, Checkpoint(), FACTS, small), noise(small, 0)
    save(writer, trees, 1)
    writer.require(1)
    assert_equal(CheckpointReader(here).restore(small).trees, trees)


def test_what_changes_after_the_snapshot_is_not_saved(writer_of, small, tmp_path: Path) -> None:
    """The next step takes the arrays' memory while they are being written."""
    writer, trees = writer_of(), noise(small, 0)
    before = jax.device_get(trees)
    writer.save(1, trees)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    for _ in range(5):
        trees = step(trees)
    writer.require(1)
    assert_equal(CheckpointReader(tmp_path / "checkpoints").restore(small).trees, before)


def test_names_of_steps(tmp_path: Path) -> None:
    for name in ("0", "12", "007", "3.writing", "4.deleting", "5.damaged", "six", "8.writing.x/y", "-1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "9").write_text("a file")
    (tmp_path / "10").symlink_to(tmp_path / "12")
    (tmp_path / "11").symlink_to(tmp_path / "nowhere")
    assert names.steps(tmp_path) == [0, 10, 11, 12]
    assert names.remains(tmp_path) == ["3.writing", "4.deleting", "8.writing.x"]
    assert names.damaged(tmp_path) == ["5.damaged"]
    assert names.steps(tmp_path / "nowhere") == []


def test_other_arrays_are_refused_leaf_by_leaf(writer_of, small, tmp_path: Path) -> None:
    save(writer_of(), noise(small, 0), 1)
    other = jax.tree.map(lambda leaf: leaf, small)
    other["params"] = {"heads": small["params"]["head"], "core": {"kernel": jax.ShapeDtypeStruct((6, 5), np.float32)}}
    with pytest.raises(UserError) as refusal:
        CheckpointReader(tmp_path / "checkpoints").restore(other)
    for words in (
        "core.kernel is float32[6, 4] there and float32[6, 5] here",
        "heads float32[6, 4] is not stored (nearest: head float32[6, 4])",
        "head float32[6, 4] is not wanted",
    ):
        assert words in str(refusal.value)


def test_every_array_is_compared_with_its_digest_in_both_sums(writer_of, small, tmp_path: Path) -> None:
    """As if the memory of one array, and of no other, had changed while it was restored."""
    save(writer_of(), noise(small, 0), 1)
    reader = CheckpointReader(tmp_path / "checkpoints")
    arrays = [f"{item} {name}" for item, name in leaves_of(small)]
    assert len(arrays) == 4
    for (number, name), word in itertools.product(enumerate(arrays), range(2)):

        def changed(leaves, at=(number, word)):
            return digests(leaves).at[at].add(1)

        with pytest.raises(UserError, match=f"1: {re.escape(name)} holds other values than were saved"):
            reader.restore(small, step=1, digest=changed)
    assert_equal(reader.restore(small, digest=digests).trees, noise(small, 0))


def test_nothing_is_restored_when_nothing_verifies(writer_of, small, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(writer_of(), noise(small, 0), 1, 2)
    for step in (1, 2):
        (folder / f"{step}/seal.json").write_text("")
    with pytest.raises(UserError, match=r"2: seal.json is empty; 1: seal.json is empty\); put a copy back"):
        CheckpointReader(folder, lambda line: None).restore(small)
    with pytest.raises(UserError, match=r"1: seal.json is empty\); use another one: \[2\]"):
        CheckpointReader(folder).restore(small, step=1)
    assert names.steps(folder) == [1, 2]


def test_a_named_step_is_taken_or_refused(writer_of, small, tmp_path: Path) -> None:
    save(writer_of(), noise(small, 0), 1, 2)
    reader = CheckpointReader(tmp_path / "checkpoints")
    assert reader.restore(small, step=1).seal == read_seal(tmp_path / "checkpoints/1")
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[1, 2\]"):
        reader.restore(small, step=3)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        CheckpointReader(tmp_path).restore(small)


def test_a_full_device_is_no_damage(writer_of, small, tmp_path: Path) -> None:
    save(writer_of(), noise(small, 0), 1, 2)

    def digest(arrays: list[jax.Array]) -> jax.Array:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError):
        CheckpointReader(tmp_path / "checkpoints", pytest.fail).restore(small, digest=digest)


def test_a_file_that_the_disk_cannot_read_is_passed_over(
    writer_of, small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(writer_of(), noise(small, 0), 1, 2)
    original = seal_module.os.open

    def fail(path: Any, *arguments: Any, **options: Any) -> int:
        if path == "config.json" and not failed:
            failed.append(path)
            raise OSError(5, "Input/output error")
        return original(path, *arguments, **options)

    failed: list[Any] = []
    monkeypatch.setattr(seal_module.os, "open", fail)
    lines: list[str] = []
    assert CheckpointReader(tmp_path / "checkpoints", lines.append).restore(small).seal.step == 1
    assert lines == [
        "checkpoint 2 is passed over: config.json cannot be read (Input/output error), which affects no array"
    ]
