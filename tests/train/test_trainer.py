"""What the trainer says before it starts, and when it looks at the devices."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from looplm.config.schema import Run
from looplm.errors import StoppedItself
from looplm.metrics.events import Events, read_events
from looplm.metrics.timing import Timekeeper
from looplm.train.profiling import Profile
from looplm.train.trainer import Trainer
from tests.conftest import VOCAB_SIZE


@pytest.mark.parametrize(("extra", "is_said"), [(0, False), (VOCAB_SIZE // 10, False), (VOCAB_SIZE // 10 + 1, True)])
def test_a_vocabulary_that_is_much_larger_than_that_of_the_data_is_worth_a_thought(
    extra: int, is_said: bool, tiny_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = tiny_run(**{"model.vocab_size": VOCAB_SIZE + extra})
    notes = list(Trainer(run, tmp_path / "run", Console(file=io.StringIO())).notes())
    said = f"model.vocab_size={VOCAB_SIZE + extra} is {extra} above the {VOCAB_SIZE} tokens of the data"
    assert [note.partition(";")[0] for note in notes] == ([said] if is_said else [])


@pytest.mark.parametrize(("every", "expected"), [(None, []), (3, [3, 6, 9]), (1, list(range(1, 10)))])
def test_devices_are_checked_every_so_many_steps(every: int | None, expected: list[int]) -> None:
    checked: list[int] = []
    trainer: Any = SimpleNamespace(
        run=SimpleNamespace(optim=SimpleNamespace(guard=SimpleNamespace(sdc_check=every))),
        corruption=SimpleNamespace(start=lambda state, batch, depth: state.step),
    )
    placed: Any = SimpleNamespace(batch={}, depth=None)
    for step in range(1, 10):
        state: Any = SimpleNamespace(params={}, step=step)
        if (found := Trainer.check_devices(trainer, state, placed, step)) is not None:
            checked.append(found)
    assert checked == expected


@pytest.mark.parametrize("writes_loads", [True, False])
def test_whatever_ends_the_steps_all_that_was_opened_is_closed(
    writes_loads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def closing(name: str) -> Any:
        return SimpleNamespace(close=lambda: closed.append(name))

    def fails(*_: object) -> None:
        raise StoppedItself("no use")

    saving = closing("saving")
    saving.newest, saving.restore_or_create = lambda: 9, lambda: (None, 3)  # the newest is damaged
    trainer: Any = SimpleNamespace(
        run=SimpleNamespace(num_steps=9), time=Timekeeper(Events(tmp_path / "events.jsonl")), saving=saving,
        run_steps=fails, profile=SimpleNamespace(write=lambda: closed.append("profile")),
        console=Console(file=io.StringIO()), workdir=None, events=None, said=None,
        evaluate=SimpleNamespace(is_owed=lambda step: False), when_set_up=lambda: closed.append("set up"),
    )  # fmt: skip
    monkeypatch.setattr("looplm.train.trainer.open_sinks", lambda *_: [closing("lines")])
    monkeypatch.setattr("looplm.train.trainer.open_loads", lambda *_: closing("loads") if writes_loads else None)
    with pytest.raises(StoppedItself):
        Trainer.go_on(trainer)
    assert closed == ["set up", "saving", "profile", "lines"] + ["loads"] * writes_loads


def test_a_device_that_computes_wrongly_ends_the_run_and_is_noted() -> None:
    events: list[Any] = []
    trainer: Any = SimpleNamespace(
        run=SimpleNamespace(log=SimpleNamespace(every_steps=99), num_steps=99),
        profile=Profile(None, Path()),
        time=SimpleNamespace(note=lambda step, every_s: None),
        corruption=SimpleNamespace(faults=lambda digests: digests),
        events=SimpleNamespace(note=lambda kind, **facts: events.append((kind, facts))),
        saving=SimpleNamespace(newest=lambda: 4),
        skipped=SimpleNamespace(look=lambda step, row: events.append(step)),
    )
    log: Any = SimpleNamespace(write=lambda dispatched: {"train/loss": 1.0})
    watchdog: Any = SimpleNamespace(beat=lambda step: None)

    def finish(digests: list[str] | None) -> dict[str, float]:
        dispatched: Any = SimpleNamespace(step=7, digests=digests)
        return Trainer.finish(trainer, dispatched, log, watchdog)

    assert finish(None) == finish([]) == {"train/loss": 1.0}
    assert events == [7, 7]
    with pytest.raises(StoppedItself, match=r"step 7: silent data corruption: one; two; .* checkpoint is of step 4$"):
        finish(["one", "two"])
    assert events[2:] == [("corrupted", {"step": 7, "faults": ["one", "two"]})]


def test_a_run_that_no_service_follows_has_no_key(finished_run: Path) -> None:
    assert "tracked" not in {event["kind"] for event in read_events(finished_run / "events.jsonl")}
