"""When held-out data is scored."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from looplm.config.schema import Run
from looplm.train.hooks import Evaluation


@pytest.mark.parametrize(("every", "due"), [(4, [4, 8, 10]), (0, []), (20, [10])])
def test_held_out_data_is_scored_every_so_often_and_at_the_end(
    every: int, due: list[int], tiny_run: Callable[..., Run]
) -> None:
    program: Any = SimpleNamespace(run=tiny_run(**{"num_steps": 10, "eval.every_steps": every}))
    held_out: Any = object()
    evaluation = Evaluation(program, held_out, Path("eval"))
    assert [step for step in range(1, 11) if evaluation.is_due(step)] == due
    assert not any(Evaluation(program, None, Path("eval")).is_due(step) for step in range(1, 11))
