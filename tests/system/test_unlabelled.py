"""Steps without a label in the middle of a run: told once, counted, and a resume among them is exact."""

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from looplm.config.schema import Run, Source
from looplm.data.formats.document import make_reading
from looplm.data.writer import build_dataset
from looplm.errors import Preempted
from looplm.metrics.events import read_events
from looplm.metrics.sinks import read_metrics
from looplm.sharding.mesh import build_mesh
from looplm.train import trainer
from tools import faults

STAGE, STOP, NUM_STEPS = 6, 14, 24
"""Updates before the second stage, before the signal, and in all."""


@pytest.fixture(scope="module")
def train(
    tiny_run: Callable[..., Run], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], tuple[Any, str]]:
    """Trains on one sequence a step, of a text and then of answers that few windows hold; compiled once."""
    folder = tmp_path_factory.mktemp("answers")
    pair = {"prompt": "how much is it? " * 6, "answer": "nine"}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 100)
    tokenizer = next((tiny_data / "train").glob("tokenizer.model"))
    reading = make_reading(examples="pairs")
    build_dataset([folder / "pairs.jsonl"], tokenizer, folder / "data", reading=reading, num_workers=1)
    sources = (
        Source(name="text", data=str(tiny_data / "train"), weight={0: 1.0, STAGE: 0.0}),
        Source(name="answers", data=str(folder / "data"), weight={STAGE: 1.0}),
    )
    run = tiny_run(
        **{
            "data.train": sources, "data.validation": None, "data.batch_tokens": 16, "num_steps": NUM_STEPS,
            "checkpoint.every_steps": 50, "optim.ema_decay": 0.9,
        }
    )  # fmt: skip
    compiled: list[Any] = []

    def train(workdir: Path) -> tuple[Any, str]:
        console = Console(file=io.StringIO(), width=1000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "build_mesh", lambda config: build_mesh(config, jax.devices()[:1]))
            one = trainer.Trainer(run, workdir, console)
            compiled[:] = compiled or [one.compiled]
            one.compiled = compiled[0]
            return one.train(), console.file.getvalue()  # type: ignore[attr-defined]

    return train


def test_a_stage_in_which_few_steps_have_labels(train: Callable[[Path], tuple[Any, str]], tmp_path: Path) -> None:
    whole, shown = train(tmp_path / "whole")
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    labelled = [row["train/tokens"] > 0 for row in rows]
    assert all(labelled[:STAGE])
    assert f"step {STAGE + 1}: a stage begins, data.train has other shares" in shown
    assert 1 <= sum(labelled[STAGE:STOP]) < STOP - STAGE
    assert [row["optim/unlabelled"] for row in rows] == np.cumsum(np.logical_not(labelled)).tolist()
    assert [np.isnan(float(row["train/loss"])) for row in rows] == np.logical_not(labelled).tolist()
    assert rows[-1]["optim/skipped"] == 0
    first = labelled.index(False) + 1
    assert shown.count("no token of the batch has a label") == 1
    assert f"note: step {first}: no token of the batch has a label" in shown
    assert f"{labelled.count(False)} of {NUM_STEPS} steps had no label and changed nothing" in shown
    assert int(whole.opt_state.guard.num_good) == sum(labelled)

    with pytest.MonkeyPatch.context() as patch:
        faults.when_written(STOP, lambda: os.kill(os.getpid(), signal.SIGTERM), patch=patch.setattr)
        with pytest.raises(Preempted):
            train(tmp_path / "ended")
    resumed, shown = train(tmp_path / "ended")
    assert "resuming" in shown
    assert "no token of the batch has a label" not in shown
    events = read_events(tmp_path / "ended" / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "note"] == [first]
    found, wanted = (jax.tree.leaves(jax.device_get((state.params, state.opt_state))) for state in (resumed, whole))
    for one, other in zip(found, wanted, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
