"""`looplm eval --data` and `--depths` leave the run's own sweep alone."""

import io
import json
import shutil
from pathlib import Path

from rich.console import Console

from looplm.data.writer import build_dataset
from looplm.eval.command import evaluate
from looplm.metrics.sweep import read_sweeps


def test_a_sweep_of_other_data_has_a_name_of_its_own(
    finished_run: Path, tiny_data: Path, texts: list[Path], tmp_path: Path
) -> None:
    tokenizer = tiny_data / "validation" / "tokenizer.model"
    build_dataset([texts[0] / "tool.py"], tokenizer, tmp_path / "data", num_workers=1)
    workdir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(workdir / "eval", ignore_errors=True)
    own = evaluate(workdir, depths="1,3")
    other = evaluate(workdir, data=str(tmp_path / "data"), depths="1,3", out=tmp_path / "out.json")
    assert other.loss != own.loss
    assert read_sweeps(workdir / "eval") == [own]
    (file,) = (workdir / "eval").glob("depth_sweep-3-data-*.json")
    assert file.read_bytes() == (tmp_path / "out.json").read_bytes()

    moved = shutil.copytree(tiny_data / "validation", tmp_path / "moved")
    again = evaluate(workdir, data=str(moved), depths="1,2,3")
    assert again.loss[0] == own.loss[0]
    assert read_sweeps(workdir / "eval") == [again]


def test_depths_by_hand_take_none_out_of_the_report(finished_run: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(workdir / "eval", ignore_errors=True)
    own = evaluate(workdir)
    assert own.depths == [1, 2, 3]
    shown = io.StringIO()
    some = evaluate(workdir, depths="1,4", out=tmp_path / "out.json", console=Console(file=shown))
    assert read_sweeps(workdir / "eval") == [own]
    file = workdir / "eval" / "depth_sweep-3-some-depths.json"
    assert shown.getvalue() == f"saved as {file}: the sweep of step 3 that is there has other depths too\n"
    assert file.read_bytes() == (tmp_path / "out.json").read_bytes()
    assert json.loads(file.read_bytes())["loss"] == some.loss

    more = evaluate(workdir, depths="1,2,3,4")
    assert read_sweeps(workdir / "eval") == [more]
    again = evaluate(workdir)  # without --depths it is the run's own, whatever is there
    assert read_sweeps(workdir / "eval") == [again]
    assert again.depths == own.depths
