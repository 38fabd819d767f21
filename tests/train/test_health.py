"""A run that goes bad is told so once, wherever its user looks, over restarts too."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from looplm.config.schema import MixtureAttention, MoE, Run
from looplm.metrics.events import NOTE, Events, read_events
from looplm.metrics.health import AT_ONCE
from looplm.report.build import write_report
from looplm.train.health import Health, choices_of_experts, judgements
from looplm.train.notes import Notes
from looplm.train.trainer import Trainer
from tests.metrics.recorded import rows_of

SITS_ON_ONE_LOOP = {
    "num_steps": 15,
    "checkpoint.every_steps": 5,
    "optim.learning_rate": 1e-5,
    "model.exit_gate.initial_exit_probability": 0.999,
}
STATE, EXITS = "health/state", "health/exits"


def told(workdir: Path) -> list[tuple[str, int]]:
    return [(event["about"], event["step"]) for event in read_events(workdir / "events.jsonl") if event["kind"] == NOTE]


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", [False, True])
def test_it_is_told_once_over_a_restart(forgotten: bool, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    workdir, output, text = tmp_path / "run", io.StringIO(), f"note: step {AT_ONCE // 2 + 1}: loop 1 has 99.9%"
    trainer = Trainer(tiny_run(**SITS_ON_ONE_LOOP), workdir, Console(file=output))
    trainer.train()
    assert told(workdir) == [(EXITS, AT_ONCE // 2 + 1)]
    assert output.getvalue().count(text) == 1
    assert "; a larger objective.entropy_weight usually helps, or a lower optim.learning_rate" in output.getvalue()
    assert write_report(workdir).read_text().count(text.removeprefix("note: step").strip()) == 1

    # As if the process had died after the checkpoint of step 10, before or after it wrote the event.
    (workdir / "checkpoints" / "15").rename(tmp_path / "15")
    if forgotten:
        lines = (workdir / "events.jsonl").read_text().splitlines(keepends=True)
        (workdir / "events.jsonl").write_text("".join(line for line in lines if json.loads(line).get("about") != EXITS))
    trainer.train()
    assert told(workdir) == [(EXITS, AT_ONCE // 2 + 1)]
    assert output.getvalue().count(text) == (2 if forgotten else 1)


@pytest.mark.parametrize("restarted_at", [0, 1, 19, 22, 202, 330])
def test_a_restart_changes_no_judgement(restarted_at: int, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    rows = [{"step": float(step)} | dict(row) for step, row in enumerate(rows_of("high_rate"), start=1)]
    events, console = Events(tmp_path / "events.jsonl"), Console(file=io.StringIO())
    for first, last in ((0, restarted_at), (restarted_at, len(rows))):
        health = Health(tiny_run(), Notes(events, console), rows[:first])
        for row in rows[first:last]:
            health.write(int(row["step"]), row)
        health.close()
    assert told(tmp_path) == [(STATE, 20), (EXITS, 24), ("health/tokens", 227), ("health/loss", 400)]


def test_the_setting_that_helps_is_one_that_is_not_set(tiny_run: Callable[..., Run]) -> None:
    def remedies(**changes: object) -> dict[str, str]:
        return {judgement.about: remedy for judgement, remedy in judgements(tiny_run(**changes))}

    before = remedies()
    after = remedies(**{"model.norm_at_loop_end": True, "model.injection": "add", "optim.learning_rate": 0.5})
    assert before["state"] == "model.norm_at_loop_end=true, or a lower optim.learning_rate (now 0.01) usually helps"
    assert after["state"] == "a lower optim.learning_rate (now 0.5) usually helps"
    assert before["tokens"].startswith("model.injection=add, or ")
    assert after["tokens"] == after["state"]


def test_experts_are_judged_where_each_is_chosen_often(tiny_run: Callable[..., Run]) -> None:
    experts = MoE(num_experts=18, experts_per_token=2)
    heads = MixtureAttention(num_experts=4, experts_per_token=2)
    run = tiny_run(**{"model.coda_layers": 1, "model.coda_feed_forward": experts, "model.attention": heads})
    assert choices_of_experts(run) == {"moe": 128 * 2 / 18, "attention": 128 * 2 / 4}
    assert [judgement.about for judgement, _ in judgements(run) if "experts" in judgement.about] == [
        "attention experts"
    ]
    assert choices_of_experts(tiny_run()) == {}
