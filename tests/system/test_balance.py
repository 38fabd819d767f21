"""Experts stay busy in every loop with the rule that moves a bias, and collapse without one."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics
from looplm.train.trainer import Trainer

pytestmark = pytest.mark.slow

NUM_STEPS, NUM_LOOPS, LAST = 300, 4, 100
EXPERTS = {
    "kind": "moe", "num_experts": 16, "experts_per_token": 4, "expert_dim": 8, "scores": "sigmoid",
    "loop_biases": NUM_LOOPS,
}  # fmt: skip
CHANGES = {
    "num_steps": NUM_STEPS, "loop.num_loops": NUM_LOOPS, "data.sequence_length": 64, "data.batch_tokens": 2048,
    "data.validation": None, "log.every_steps": 1,
}  # fmt: skip


def loads(tiny_run: Callable[..., Run], workdir: Path, bias_rate: float) -> tuple[np.ndarray, float]:
    """Load of the most loaded expert over the mean (LAST steps, loops), and the most experts without a token."""
    experts = EXPERTS | {"balance": {"bias_rate": bias_rate}}
    Trainer(tiny_run(**CHANGES, **{"model.feed_forward": experts}), workdir, Console(file=io.StringIO())).train()
    rows = read_metrics(workdir / "metrics.jsonl")[-LAST:]
    most = np.array([[row[f"moe/load_max_loop_{t + 1}"] for t in range(NUM_LOOPS)] for row in rows])
    return most, max(row["moe/dead"] for row in rows)


def test_with_the_rule(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    most, dead = loads(tiny_run, tmp_path, 0.01)
    assert most.shape == (LAST, NUM_LOOPS)
    assert np.all(most < 2)
    assert dead == 0


def test_without_a_rule(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    most, dead = loads(tiny_run, tmp_path, 0.0)
    assert np.all(most > 2)
    assert dead > 0
