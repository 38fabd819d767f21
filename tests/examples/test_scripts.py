"""The examples run as they are, on sizes that take seconds; each is one that a notebook can run cell by cell."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
IN_CELLS = ("python_api", "own_training_loop")


@pytest.mark.parametrize("name", IN_CELLS)
def test_a_cell_begins_with_what_it_is_for(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(re.findall(r"^# %% \w", text, re.M)) > 4
    assert f"python examples/{name}.py" in ast.get_docstring(ast.parse(text))


def test_own_training_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["own_training_loop.py", "--steps", "12", "--dim", "32"])
    names = runpy.run_path(str(EXAMPLES / "own_training_loop.py"))
    assert len(names["traced"]) == 1, "one program for all depths that were drawn"
    losses = [float(loss) for loss in re.findall(r"step \d+: .*loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0]


@pytest.mark.slow  # the README's part of it runs in tests/docs
def test_python_api(finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["python_api.py", str(finished_run)])
    runpy.run_path(str(EXAMPLES / "python_api.py"))
    shown = capsys.readouterr().out
    assert len(re.findall(r"depth \d: \d+\.\d+ nats", shown)) == 4
    assert "expected loops" in shown
    assert len(re.findall(r"loops: \[\d", shown)) == 3
