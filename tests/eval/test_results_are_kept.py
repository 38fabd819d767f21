"""Where a result is kept is looked at before the work; what cannot be kept is shown."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.eval import command as eval_command
from looplm.metrics.sweep import Sweep, read_sweeps


@pytest.fixture(scope="module", autouse=True)
def score_once() -> None:
    """The tests of this module score the same weights."""
    original, known = eval_command.depth_sweep, {}

    def sweep(*arguments: object, **options: object) -> Sweep:
        known.setdefault("result", None)
        known["result"] = known["result"] or original(*arguments, **options)
        return known["result"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_command, "depth_sweep", sweep)
        yield


@pytest.fixture
def workdir(finished_run: Path, tmp_path: Path) -> Path:
    workdir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(workdir / "eval", ignore_errors=True)
    return workdir


def no_work(*arguments: object, **options: object) -> None:
    raise AssertionError("nothing is scored before it is known where the result goes")


def test_a_result_that_cannot_be_kept_is_shown(workdir: Path, tmp_path: Path, command) -> None:
    (workdir / "eval").touch()
    code, shown, told = command("eval", workdir)
    assert (code, "(trained)" in shown) == (0, True)
    assert told == (
        f"looplm: {workdir}/eval cannot be written ({workdir}/eval is no folder): the result is shown and not kept; "
        "--out FILE keeps it elsewhere\n"
    )
    code, again, told = command("eval", workdir, "--out", tmp_path / "new/folder/result.json")
    assert (code, again) == (0, shown)
    assert told.endswith(f": the result is written to {tmp_path}/new/folder/result.json only\n")
    assert Sweep.model_validate_json((tmp_path / "new/folder/result.json").read_bytes()).step == 3
    assert (workdir / "eval").read_bytes() == b""


@pytest.mark.parametrize(
    ("out", "reason"), [("file/result.json", "file is no folder"), ("full/result.json", "no room")]
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    out: str, reason: str, workdir: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    usage = shutil.disk_usage
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: usage(path)._replace(free=0 if "full" in str(path) else 1 << 40)
    )
    monkeypatch.setattr(eval_command, "depth_sweep", no_work)
    code, _, told = command("eval", workdir, "--out", tmp_path / out)
    assert (code, told.count("\n"), reason in told) == (2, 1, True), told
    assert told.startswith(f"looplm: --out {tmp_path / out} cannot be written: {tmp_path}")
    (tmp_path / "report.html").mkdir()
    code, _, told = command("report", workdir, "--out", tmp_path / "report.html")
    assert (code, told) == (
        2,
        f"looplm: {tmp_path}/report.html cannot be written: it is a folder; give a file elsewhere with --out\n",
    )


def test_a_disk_that_fills_up_while_it_works(
    workdir: Path, small_disk: Callable[[str], Path], command, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("256k")
    (workdir / "eval").symlink_to(disk)
    original = eval_command.depth_sweep

    def sweep_and_fill(*arguments: object, **options: object) -> Sweep:
        (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free))
        return original(*arguments, **options)

    monkeypatch.setattr(eval_command, "depth_sweep", sweep_and_fill)
    code, shown, told = command("eval", workdir, "--out", disk / "result.json")
    assert (code, "(trained)" in shown) == (2, True)
    assert told.splitlines() == [
        f"looplm: {workdir}/eval could not be written (No space left on device); the result is not there",
        f"looplm: --out {disk}/result.json could not be written: No space left on device; name another file",
    ]
    assert [path.name for path in disk.iterdir()] == ["filling"]


def test_the_run_of_a_colleague(workdir: Path, tmp_path: Path, command) -> None:
    """Nothing in it may be written, by whoever is not root."""
    assert command("eval", workdir, "--out", "/dev/null").code == 0
    sweeps = read_sweeps(workdir / "eval")
    assert len(sweeps) == 1
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    shutil.copytree(workdir, folder := tmp_path / "theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: not (mode & os.W_OK and str(path).startswith(str(folder))))
        code, shown, told = command("eval", folder)
        assert (code, "(trained)" in shown) == (0, True), told
        assert f"{folder}/eval cannot be written ({folder}/eval is not writable): the result is shown" in told
        code, _, told = command("report", folder)
        assert (code, told) == (
            2,
            f"looplm: {folder}/report.html cannot be written: {folder} is not writable; give a file elsewhere with "
            "--out\n",
        )
        code, shown, _ = command("report", folder, "--out", tmp_path / "there/report.html")
        assert (code, shown) == (0, f"wrote {tmp_path}/there/report.html\n")
    assert (tmp_path / "there/report.html").read_text().startswith("<!DOCTYPE html>")
