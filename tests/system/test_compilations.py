"""Whatever depth a step has, one program serves it, and after the first step and the first save nothing is compiled."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from rich.console import Console

from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics
from looplm.train.trainer import Trainer

COMPILATION = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The names of the programs that were compiled, as they come."""
    names: list[str] = []

    def listen(event: str, duration_s: float, **what: str) -> None:
        if event == COMPILATION:
            names.append(what["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_one_program_serves_all_depths(
    tiny_run: Callable[..., Run], compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = {"loop.depth": {"kind": "uniform", "max_loops": 4}, "loop.backprop_loops": 2}
    changes = {"num_steps": 8, "checkpoint.every_steps": 3, **depth}
    trainer = Trainer(tiny_run(**changes), tmp_path / "run", Console(file=io.StringIO()))
    before_step: list[int] = []
    place = trainer.batch.place
    monkeypatch.setattr(trainer.batch, "place", lambda *a: before_step.append(len(compiled)) or place(*a))
    trainer.train()

    depths = [row["loop/num_loops"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(set(depths)) >= 3
    assert sum("train_step" in name for name in compiled) == 1
    assert len(before_step) == 8
    # At the first save, after step 3, Orbax compiles how it cuts the arrays, where nothing in this process did before.
    first_save = slice(before_step[3], before_step[4])
    assert set(compiled[first_save]) <= {"jit(slice)"}
    del compiled[first_save]
    assert compiled[before_step[1] :] == []
