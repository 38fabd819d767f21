"""The worked example trains, and is read again where its file is found; else one line says what is missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import looplm

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_injection.py"
SMALL = {
    "num_steps": 3, "model.vocab_size": 384, "model.dim": 16, "model.num_heads": 2, "model.hidden_dim": 32,
    "loop.num_loops": 3, "loop.unroll": "false", "data.sequence_length": 16, "data.batch_tokens": 128,
    "optim.schedule.warmup_steps": 2, "model.injection.initial_share": 0.75,
}  # fmt: skip


class Answer(NamedTuple):
    code: int
    stdout: str
    stderr: str


def run_looplm(*words: object, path: Path | None = None) -> Answer:
    """Runs the command line in a process of its own, with `path` on PYTHONPATH."""
    paths = [str(Path(looplm.__file__).parents[1]), *([str(path)] if path else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "looplm", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
    return Answer(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def own_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the example, trained from a copy of it in another folder."""
    folder = tmp_path_factory.mktemp("own")
    example = shutil.copy(EXAMPLE, folder)
    data = {f"data.{side}": tiny_data / side for side in ("train", "validation")}
    settings = [word for key, value in (SMALL | data).items() for word in ("--set", f"{key}={value}")]
    answer = run_looplm("train", example, "--workdir", folder / "run", *settings)
    assert answer.code == 0, answer.stderr
    return folder / "run"


def test_it_is_trained_measured_and_named(own_run: Path) -> None:
    rows = [json.loads(line) for line in (own_run / "metrics.jsonl").read_text().splitlines()]
    shares = [row["loop/input_share"] for row in rows if "loop/input_share" in row]
    assert shares[0] == pytest.approx(0.75, abs=0.01)
    assert len(set(shares)) == len(shares), "it learns"
    stored = json.loads((own_run / "config.json").read_text())["model"]["injection"]
    assert stored == {"kind": "own_injection:GatedInjection", "initial_share": 0.75}


@pytest.mark.slow
def test_it_is_read_again_where_its_file_is_found(own_run: Path) -> None:
    answer = run_looplm("eval", own_run, "--depths", "1,3", path=own_run.parent)
    assert answer.code == 0, answer.stderr


def test_without_its_file_one_line_says_what_is_missing(own_run: Path) -> None:
    answer = run_looplm("eval", own_run)
    assert answer.code == 2
    (line,) = answer.stderr.splitlines()
    assert line == (
        f"looplm: {own_run}/config.json: model.injection: own_injection:GatedInjection is a class of your own, and "
        "Python finds no own_injection.py; put the folder that holds it on PYTHONPATH, or import own_injection first"
    )
