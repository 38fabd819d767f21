"""Steps with a NaN, a spike or a bad batch: nothing is touched, one step is lost each, and too many end the run."""

import io
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from looplm.config.schema import Run
from looplm.data.dataset import TokenDataset
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.errors import Preempted, StoppedItself
from looplm.metrics.events import read_events
from looplm.metrics.sinks import read_metrics
from looplm.sharding.mesh import build_mesh
from looplm.train import feed, trainer
from looplm.train.program import Program
from tools import faults

NUM_STEPS, WARMUP = 60, 6
BAD = {1, 4, *random.Random(0).sample(range(WARMUP + 1, NUM_STEPS + 1), 20)}
"""The first step, one in the warm-up, and twenty more; from 1."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


def test_a_bad_step_is_as_if_it_had_not_been(tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same program on the other steps only; weights, moments, averages and counts, to the bit."""
    faults.spoil_steps(BAD, patch=monkeypatch.setattr)
    changes = {"num_steps": NUM_STEPS, "optim.ema_decay": 0.9, "optim.schedule.warmup_steps": WARMUP, "mesh.data": 2}
    run = tiny_run(**changes, **{"loop.depth": {"kind": "uniform", "max_loops": 3}})
    program = Program(run, build_mesh(run.mesh, jax.devices()[:4]))
    step, batches = program.compile(), train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0)
    state, clean = program.create_state(), program.create_state()
    for index, batch in enumerate(islice(batches, NUM_STEPS)):
        before = bits((state.params, state.opt_state.optimizer))
        state, output = step(state, batch, index)
        kept = bits((state.params, state.opt_state.optimizer)) == before
        assert kept == (index + 1 in BAD) == bool(output.numbers["optim/skipped_in_a_row"]), f"step {index + 1}"
        if index + 1 in BAD:
            assert np.isnan(output.means["train/loss"])
            assert np.isnan(output.means["train/grad_norm"])
            clean = replace(clean, step=clean.step + 1)
        else:
            clean, wanted = step(clean, batch, index)
            assert output.means["train/loss"] == wanted.means["train/loss"]
            assert output.numbers["optim/learning_rate"] == wanted.numbers["optim/learning_rate"]
    assert bits((state.step, state.params, state.opt_state.optimizer)) == bits(
        (clean.step, clean.params, clean.opt_state.optimizer)
    )
    guard = state.opt_state.guard
    assert bits(guard.good_2W) == bits(clean.opt_state.guard.good_2W)
    assert (int(guard.skipped), int(guard.num_good)) == (len(BAD), NUM_STEPS - len(BAD))


BAD_BATCHES = (2, *range(5, 9))
"""From 0: one alone, then four in a row."""
CHANGES = {"num_steps": 12, "checkpoint.every_steps": 4, "optim.guard.stop_after": 4, "eval.every_steps": 0}


@pytest.fixture(scope="module")
def spoiled(tiny_run: Callable[..., Run], patch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str]]:
    """Trains on two devices with bad batches; returns the state and what the console showed. Compiled once."""
    faults.spoil_batches(BAD_BATCHES, patch=patch.setattr)
    devices = jax.devices()[:2]
    patch.setattr(trainer, "build_mesh", lambda config: build_mesh(config, devices))
    compiled: list[Any] = []

    def train(workdir: Path, **changes: object) -> tuple[Any, str]:
        console = Console(file=io.StringIO(), width=1000)
        one = trainer.Trainer(tiny_run(**CHANGES | changes), workdir, console)
        compiled[:] = compiled or [one.compiled]
        one.compiled = compiled[0]
        return one.train(), console.file.getvalue()  # type: ignore[attr-defined]

    return train


def steps_of(checkpoints: Path) -> list[int]:
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())


def test_many_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(spoiled, tiny_run, tmp_path: Path) -> None:
    with pytest.raises(StoppedItself) as stopped:
        spoiled(tmp_path)
    assert stopped.value.code == 76
    assert str(stopped.value).startswith(
        "step 9: the last 4 updates were not made (loss nan is not finite and gradient norm nan is not finite); "
        "the newest checkpoint is of step 4"
    )
    assert "--set optim.guard.rewinds=1" in str(stopped.value)
    assert steps_of(tmp_path / "checkpoints") == [4]
    events = [event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "skipped"]
    assert [event["step"] for event in events] == [3, 6, 7, 8, 9]
    assert [event["batch"] for event in events] == list(BAD_BATCHES)
    # The windows are those that the loader reads: their tokens are in the dataset where the event says.
    run = tiny_run(**CHANGES)
    rows = next(train_loader(open_mixture(run.data, seed=run.seed), start_step=2, prefetch=0))
    (windows,) = events[0]["windows"].values()
    data = TokenDataset.open(run.data.train)
    read = [data.tokens(16 * window, 16 * window + 16) for window in windows]
    np.testing.assert_array_equal(read, rows["tokens"])
    assert [row["optim/skipped"] for row in read_metrics(tmp_path / "metrics.jsonl")][:3] == [0, 0, 1]


def test_a_rewind_goes_on_without_the_bad_batches_and_a_resume_of_it_is_exact(spoiled, tmp_path: Path) -> None:
    rewinds = {"optim.guard.rewinds": 1}
    checks: list[Any] = []  # compiled when they are made, and not again after the rewind

    class Check:
        def __init__(self, program: Any) -> None:
            checks.append(program)

        def start(self, *_: Any) -> None:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CorruptionCheck", Check)
        state, shown = spoiled(tmp_path / "whole", **rewinds, **{"optim.guard.sdc_check": 5})
    assert len(checks) == 1
    assert "step 3: update not made, loss nan is not finite and gradient norm nan is not finite; batch 2: " in shown
    assert "back to step 4, passing over 5 batches" in shown
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["optim/skipped"] == 1

    # Ended by a signal after the rewind, and started again.
    with pytest.MonkeyPatch.context() as patch:
        second_time = iter((False, True))
        faults.when_written(6, lambda: next(second_time) and os.kill(os.getpid(), signal.SIGTERM), patch=patch.setattr)
        with pytest.raises(Preempted) as preempted:
            spoiled(tmp_path / "ended", **rewinds)
    assert preempted.value.code == 75
    last = steps_of(tmp_path / "ended" / "checkpoints")[-1]
    assert 6 <= last < 12
    assert last % 4, "not one of those that are due"
    resumed, _ = spoiled(tmp_path / "ended", **rewinds)
    assert bits(resumed) == bits(state)

    # And as a run that was given the other batches from the start.
    with pytest.MonkeyPatch.context() as patch:
        load = feed.train_loader
        order = [*range(4), *range(9, 17)]

        def in_order(*arguments: Any, start_step: int, **named: Any) -> Iterator[Any]:
            return (next(load(*arguments, start_step=number, **named)) for number in order[start_step:])

        patch.setattr(feed, "train_loader", in_order)
        told, _ = spoiled(tmp_path / "told")
    assert bits(told) == bits(state)


def test_what_another_job_did_before_it_gave_the_lock_back_is_seen(spoiled, tmp_path: Path) -> None:
    """A job that was made while another trained, and starts when that one has rewound and ended."""
    rewinds = {"optim.guard.rewinds": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "train", lambda waiting: waiting)
        job, _ = spoiled(tmp_path, **rewinds)
    with pytest.MonkeyPatch.context() as patch:
        faults.when_written(10, lambda: os.kill(os.getpid(), signal.SIGTERM), patch=patch.setattr)
        with pytest.raises(Preempted):
            spoiled(tmp_path, **rewinds)
    assert job.batches.of(12) == 11
    state = job.train()
    assert job.batches.of(12) == 11 + 5
    assert int(state.opt_state.guard.skipped) == 1
    assert len({event["started"] for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "time"}) == 2


def test_a_run_that_ends_with_bad_updates_does_not_end_well(spoiled, tmp_path: Path) -> None:
    changes = {"num_steps": 12, "optim.guard.stop_after": 10}
    with pytest.MonkeyPatch.context() as patch:
        batches = trainer.Batches.of
        patch.setattr(trainer.Batches, "of", lambda self, step: 5 if step == 12 else batches(self, step))
        with pytest.raises(StoppedItself, match="the last 1 updates of the run were not made: loss nan is not finite"):
            spoiled(tmp_path, **changes)
    assert steps_of(tmp_path / "checkpoints")[-1] == 12
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["train/loss"] == "NaN"
