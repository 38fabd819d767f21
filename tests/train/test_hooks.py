"""When held-out data is scored, and with which weights."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Run
from looplm.metrics.events import Events
from looplm.train import hooks
from looplm.train.flops import Flops, StepFlops
from looplm.train.hooks import Evaluation, efficiency


@pytest.mark.parametrize(("every", "due"), [(4, [4, 8, 10]), (0, []), (20, [10])])
def test_held_out_data_is_scored_every_so_often_and_at_the_end(
    every: int, due: list[int], tiny_run: Callable[..., Run]
) -> None:
    program: Any = SimpleNamespace(run=tiny_run(**{"num_steps": 10, "eval.every_steps": every}))
    held_out: Any = object()
    evaluation = Evaluation(program, held_out, Path("eval"), Events(Path("events")))
    assert [step for step in range(1, 11) if evaluation.is_due(step)] == due
    assert not any(Evaluation(program, None, Path("eval"), evaluation.events).is_due(step) for step in range(1, 11))


@pytest.mark.parametrize(
    ("drawn", "flops"), [([3, 4], 1 + 3 * 10 + 100), ([0, 1], 1 + 25), ([[0, 2], [2, 4], [4, 4]], 1 + 2 * 10 + 250 / 3)]
)
def test_efficiency_is_that_of_the_loops_that_were_drawn(drawn: Any, flops: float) -> None:
    chip = SimpleNamespace(device_kind="TPU v4")
    program: Any = SimpleNamespace(
        depths=SimpleNamespace(window=4),
        mesh=SimpleNamespace(devices=np.array([chip] * 2)),
        dtype=jnp.dtype("bfloat16"),
    )
    step = StepFlops(once=Flops(1e12, 9e12), detached=Flops(10e12, 90e12), window=Flops(100e12, 900e12))
    metrics = efficiency(program, step, np.array(drawn, np.int32), seconds=0.5)
    assert metrics["perf/tflops_per_device"] == pytest.approx(flops / 0.5 / 2)
    assert metrics["perf/mfu"] == pytest.approx(flops / 0.5 / 2 / 275)


def test_the_weights_and_their_average_are_scored_under_names_of_their_own(
    tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    program: Any = SimpleNamespace(run=tiny_run(), learning=SimpleNamespace(put=lambda part, tree: part))
    state: Any = SimpleNamespace(params="weights", opt_state="average")
    asked: list[tuple[str, bool]] = []
    losses = {"weights": 2.0, "average": 1.5}

    def sweep(params: str, step: int, *, ema: bool, stops: Callable[[], bool]) -> Any:
        asked.append((params, ema))
        row = SimpleNamespace(depth=3, loss=losses[params], bits_per_byte=None)
        return SimpleNamespace(rows=[row], save=lambda folder: None)

    evaluation = Evaluation(program, None, Path("eval"), Events(Path("events")))
    monkeypatch.setattr(evaluation, "sweep", sweep)
    monkeypatch.setattr(hooks, "ema_params", lambda opt_state: opt_state)
    assert evaluation(state, 4, [], lambda: False) == {"eval/loss_depth_3": 2.0, "eval/ema_loss_depth_3": 1.5}
    assert asked == [("weights", False), ("average", True)]
