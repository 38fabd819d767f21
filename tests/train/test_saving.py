"""When the clock of the saves begins anew."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from looplm.config.schema import Run
from looplm.train.saving import Saving
from looplm.train.workdir import Workdir


def test_minutes_are_counted_from_the_last_save(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    run = tiny_run(**{"num_steps": 99, "checkpoint.every_steps": None, "checkpoint.every_minutes": 2})
    rest: Any = None
    program: Any = SimpleNamespace(run=run)
    state: Any = SimpleNamespace(params={}, opt_state=(), carry=None)
    saving, saved, now = Saving(program, rest, Workdir(tmp_path), rest, rest, rest), list[int](), [0.0]
    writer: Any = SimpleNamespace(save=lambda step, *_, **__: saved.append(step))
    saving._writer = writer
    saving.schedule.clock = lambda: now[0]
    saving.schedule.saved()
    for step in range(1, 10):
        now[0] = 50.0 * step
        if saving.is_due(step):
            saving.save(step, state, {})
    assert saved == [3, 6, 9]
