"""A run that services follow, and some steps of which are profiled."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import pytest
from rich.console import Console

from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.metrics import trackers
from looplm.metrics.events import read_events
from looplm.metrics.sinks import read_metrics
from looplm.metrics.trackers import Tracked
from looplm.sharding.mesh import build_mesh
from looplm.train import trainer
from looplm.train.profiling import Profile
from looplm.train.trainer import Trainer


class Recording:
    """A service that remembers what it was told."""

    opened: list["Recording"]

    def __init__(self, run: Tracked) -> None:
        self.run, self.rows, self.closed = run, list[dict[str, float]](), 0
        self.opened.append(self)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **metrics})

    def close(self) -> None:
        self.closed += 1


def test_a_run_is_followed_and_profiled_over_a_restart(
    tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recording.opened = []
    monkeypatch.setattr(trainer, "build_mesh", lambda config: build_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Recording})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    run = tiny_run(**{"log.trackers": ["wandb"], "log.project": "mine", "num_steps": 4})
    workdir = tmp_path / "run"
    first = Trainer(run, workdir, Console(file=io.StringIO()), profile="2:3")
    first.train()
    (told,) = Recording.opened
    assert told.closed == 1
    rows = read_metrics(workdir / "metrics.jsonl")
    assert told.rows == rows
    assert (told.run.project, told.run.workdir) == ("mine", workdir)
    assert told.run.settings["model.dim"] == 16
    assert annotated(workdir / "profile") == {2, 3}

    # As if the process had died after the checkpoint of step 2: steps 3 and 4 are sent again, under the same name.
    (workdir / "checkpoints" / "4").rename(tmp_path / "4")
    second = Trainer(run, workdir, Console(file=io.StringIO()))
    second.compiled = first.compiled
    second.train()
    _, again = Recording.opened
    assert again.run.key == told.run.key
    assert [row["step"] for row in again.rows] == [row["step"] for row in rows if row["step"] > 2]
    assert [row["train/loss"] for row in again.rows if "train/loss" in row] == [
        row["train/loss"] for row in rows if "train/loss" in row and row["step"] > 2
    ]
    assert len([event for event in read_events(workdir / "events.jsonl") if event["kind"] == "tracked"]) == 1


def annotated(folder: Path) -> set[int]:
    """The steps that a profile holds, as its readers find them."""
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    return {int(value) for event in events for name, value in event.stats if name == "step_num"}


@pytest.mark.parametrize("steps", ["10", "0:3", "5:4", "a:b", "1:2:3", ""])
def test_what_is_no_range_of_steps_is_refused(steps: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--profile {steps}: not FIRST:LAST"):
        Profile(steps, tmp_path)
