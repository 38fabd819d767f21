"""A run that goes bad is told so once, wherever its user looks, over restarts too."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from looplm.config.schema import MixtureAttention, MoE, Run
from looplm.metrics.events import NOTE, Events, read_events
from looplm.report.build import write_report
from looplm.train.health import Health, choices_of_experts, judgements
from looplm.train.notes import Notes
from looplm.train.trainer import Trainer
from tests.metrics.recorded import rows_of

COLLAPSES = {
    "num_steps": 40,
    "checkpoint.every_steps": 30,
    "optim.learning_rate": 1.0,
    "optim.schedule.decay": "constant",
    "optim.guard.spike_deviations": None,
}
STATE, EXITS = "health/state", "health/exits"


def told(workdir: Path) -> list[tuple[str, int]]:
    return [(event["about"], event["step"]) for event in read_events(workdir / "events.jsonl") if event["kind"] == NOTE]


def test_a_collapse_is_told_once_over_a_restart(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    workdir, output = tmp_path / "run", io.StringIO()
    trainer = Trainer(tiny_run(**COLLAPSES), workdir, Console(file=output))
    trainer.train()
    (state, state_step), (exits, exits_step) = told(workdir)
    assert (state, exits) == (STATE, EXITS)
    assert state_step < 30 < exits_step, "so that the checkpoint lies between"
    report = write_report(workdir).read_text()

    # As if the process had died after the checkpoint: what came later is told again, after as many rows as before.
    (workdir / "checkpoints" / "40").rename(tmp_path / "40")
    lines = (workdir / "events.jsonl").read_text().splitlines(keepends=True)
    (workdir / "events.jsonl").write_text("".join(line for line in lines if json.loads(line).get("about") != EXITS))
    trainer.train()
    assert told(workdir) == [(STATE, state_step), (EXITS, exits_step)]
    for step, times, text in ((state_step, 1, "the state has grown from 0.0"), (exits_step, 2, "loop 3 has 99.")):
        assert output.getvalue().count(f"note: step {step}: {text}") == times
        assert report.count(f"Step {step}: {text}") == 1
    assert "; model.norm_at_loop_end=true, or a lower optim.learning_rate (now 1) usually helps\n" in output.getvalue()


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
