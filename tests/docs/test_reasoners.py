"""docs/reasoners.md is true: its task of one's own is made, opened and trained on, its commands make what it says."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from looplm.cli import app
from looplm.config.load import load_config
from looplm.data.held_out import open_held_out
from looplm.data.mixture import open_mixture

ROOT = Path(__file__).parents[2]
TEXT, CONFIG = (ROOT / "docs" / "reasoners.md").read_text(), ROOT / "examples" / "own_grids.py"
COMMANDS = re.findall(r"^    looplm (data grids .*)$", TEXT, re.MULTILINE)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the script has run."""
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(script, {})
    return tmp_path


def test_a_task_of_ones_own_is_a_script_and_a_config(own: Path) -> None:
    run = load_config(CONFIG)
    mixture = open_mixture(run.data, seed=run.seed)
    mixture.check(vocab_size=run.model.vocab_size, num_steps=run.num_steps)
    batch = mixture.batch(0, slice(0, 64))
    assert batch["labels"].tolist() == np.sort(batch["tokens"].reshape(-1, 4)).reshape(64, 16).tolist()
    assert batch["ids"].tolist() == [0] * 64
    held_out = open_held_out(run.data.validation, run.data)
    assert (len(mixture.parts[0].windows), held_out.num_documents) == (20000, 500)


@pytest.mark.slow
def test_it_is_learnt(own: Path) -> None:
    train = ["train", str(CONFIG), "--workdir", "run", "--set", "num_steps=20", "--set", "eval.every_steps=20"]
    result = CliRunner().invoke(app, train, catch_exceptions=False)
    assert result.exit_code == 0
    assert (own / "run" / "checkpoints" / "20").is_dir()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[2])
def test_its_commands_make_folders(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {
        "sudoku": "--size 4 --train 4 --test 2 --min-guesses 0",
        "maze": "--train 2 --test 1",
        "rules": "--tasks 12",
    }
    words = shlex.split(command)
    if words[2] == "arc":
        task = '{"%s": {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[4]]}]}}'
        for number, name in enumerate(re.findall(r"\S+\.json", command)):
            Path(name).write_text(task % number)
        words += ["--augment", "2"]
    result = CliRunner().invoke(app, [*words, *shlex.split(small.get(words[2], ""))], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "data").iterdir()} == {Path(words[4]).name}
    assert all((tmp_path / words[4] / part / "dataset.json").is_file() for part in ("train", "test"))


def test_every_puzzle_has_a_command() -> None:
    assert {command.split()[2] for command in COMMANDS} == {"sudoku", "maze", "arc", "rules"}
