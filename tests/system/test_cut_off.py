"""An evaluation that a signal cuts off is made up by the next start."""

import io
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import looplm
from looplm.config.schema import Run
from looplm.errors import Preempted
from looplm.eval.score import Scorer
from looplm.metrics.events import read_events
from looplm.metrics.sinks import read_metrics
from looplm.train.trainer import Trainer

TIMED = ("perf/", "data/wait_s", "ckpt/", "model/", "goodput/")


def lines(workdir: Path) -> list[dict[str, float]]:
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in rows]


def test_evaluations_are_made_up(tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a run and after its last step."""
    run = tiny_run(**{"eval.every_steps": 2, "eval.max_batches": 3})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(run, whole, Console(file=io.StringIO())).train()
    score = Scorer.__call__
    batches: list[int] = []

    def score_and_signal(*arguments: object) -> object:
        batches.append(len(batches))
        if len(batches) in {2, 2 + 3 + 1}:  # the second batch of step 2; made up, and the first of step 3
            signal.raise_signal(signal.SIGTERM)
        return score(*arguments)

    monkeypatch.setattr(Scorer, "__call__", score_and_signal)
    for step in (2, 3):
        with pytest.raises(Preempted, match=f"SIGTERM: saved after step {step}"):
            Trainer(run, cut, Console(file=io.StringIO())).train()
        assert "eval/loss_depth_3" not in lines(cut)[-1]
        assert lines(cut)[-1]["step"] == step
    said = io.StringIO()
    for _ in range(2):  # and not twice
        Trainer(run, cut, Console(file=said)).train()
    assert said.getvalue().count("the evaluation of step 3 was cut off, and is made up") == 1
    assert lines(cut) == lines(whole)
    assert len(batches) == 2 + 3 + 1 + 3
    assert [event["cut_off"] for event in read_events(cut / "events.jsonl") if event["kind"] == "evaluation"] == [
        True, False, True, False
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, looplm.load(cut).params, looplm.load(whole).params)
