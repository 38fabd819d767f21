"""When held-out data is scored, and what a program gets of a device."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from looplm.config.schema import Run
from looplm.hardware import GIB, find
from looplm.train.hooks import Evaluation
from looplm.train.memory import Memory, available_bytes, memory_line


@pytest.mark.parametrize(("every", "due"), [(4, [4, 8, 10]), (0, []), (20, [10])])
def test_held_out_data_is_scored_every_so_often_and_at_the_end(
    every: int, due: list[int], tiny_run: Callable[..., Run]
) -> None:
    program: Any = SimpleNamespace(run=tiny_run(**{"num_steps": 10, "eval.every_steps": every}))
    held_out: Any = object()
    evaluation = Evaluation(program, held_out, Path("eval"))
    assert [step for step in range(1, 11) if evaluation.is_due(step)] == due
    assert not any(Evaluation(program, None, Path("eval")).is_due(step) for step in range(1, 11))


def test_a_v5e_gives_a_program_15_and_three_quarters_gib() -> None:
    device = find("TPU v5 lite")
    assert device is not None
    assert available_bytes(device) / GIB == pytest.approx(15.75, abs=0.01)
    assert "3.74 GiB free" in memory_line(Memory(10 * GIB, 2 * GIB, 0, 0), device)
    assert "0.26 GiB too much" in memory_line(Memory(10 * GIB, 6 * GIB, 0, 0), device)
