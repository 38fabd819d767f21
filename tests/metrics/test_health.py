"""Recorded rows of runs that learn and of runs that do not, judged one after the other."""

import math

import numpy as np
import pytest

from looplm.metrics import health
from looplm.metrics.health import (
    Above,
    DeadExperts,
    ExitsOnOneLoop,
    Judgement,
    LossStands,
    Row,
    StateGrows,
    TokensAlike,
)
from tests.metrics.recorded import RUNS, rows_of

WARMUP = 20
BAD = {
    "high_rate": {"exits": 24, "tokens": 238, "state": 20, "loss": 404},
    "no_balance": {"moe experts": 266},
    "no_rate": {"loss": 404},
}
"""What is told of a run, and at which step at first."""
GOOD = sorted(set(RUNS) - set(BAD))


def told(rows: list[Row]) -> dict[str, int]:
    """The first step at which each judgement says something."""
    judgements: tuple[Judgement, ...] = (
        ExitsOnOneLoop(),
        TokensAlike(warmup=WARMUP),
        StateGrows(),
        DeadExperts("moe", warmup=WARMUP),
        DeadExperts("attention", warmup=WARMUP),
        LossStands(peak_rate=max(row["optim/learning_rate"] for row in rows), vocab_size=2048),
    )
    found: dict[str, int] = {}
    for step, row in enumerate(rows, start=1):
        for judgement in judgements:
            if judgement.look(row):
                found.setdefault(judgement.about, step)
    return found


@pytest.mark.parametrize("run", GOOD)
def test_of_a_run_that_learns_nothing_is_told(run: str) -> None:
    assert told(rows_of(run)) == {}


@pytest.mark.parametrize("run", BAD)
def test_what_is_bad_is_told_and_nothing_else(run: str) -> None:
    assert told(rows_of(run)) == BAD[run]


def test_a_collapse_is_told_within_fifty_steps_of_its_first() -> None:
    """Where the norm is a hundredfold and nearly all exits are on one loop for the first time."""
    rows = rows_of("high_rate")
    grown = next(step for step, row in enumerate(rows, 1) if row["loop/state_norm"] > 100 * rows[0]["loop/state_norm"])
    one = next(step for step, row in enumerate(rows, 1) if max(shares(row)) > 0.99)
    steps = told(rows)
    assert steps["state"] - grown < 50
    assert steps["exits"] - one < 50


def shares(row: Row) -> list[float]:
    return [value for name, value in row.items() if name.startswith("gate/exit_loop_")]


def test_words_hold_the_numbers() -> None:
    rows = rows_of("high_rate")[:100]
    exits, state = ExitsOnOneLoop(), StateGrows()
    for row in rows:
        said = exits.look(row), state.look(row)
    assert said[0] == "loop 4 has 100.0% of the exit distribution, so no other loop is trained"
    norm = np.median([row["loop/state_norm"] for row in rows[-health.AT_ONCE :]])
    assert said[1] == f"the state has grown from {rows[0]['loop/state_norm']:.3g} to {norm:.3g} (loop/state_norm)"


def test_most_of_the_last_rows_decide() -> None:
    above = Above(1.0, rows=3, warmup=1)
    values = (9.0, 5.0, math.nan, 0.0, 7.0, math.nan, 1.0, 2.0, 0.5, math.inf, math.inf)
    assert [above.add(value) for value in values] == [None] * 4 + [5.0, None, None, 2.0, None, 2.0, math.inf]


def test_a_state_that_is_large_from_the_start_has_not_grown() -> None:
    state = StateGrows()
    assert not any(state.look({"loop/state_norm": norm}) for norm in np.geomspace(50, 4000, 100).tolist())


def test_a_gate_that_is_trained_alone_may_choose_one_loop() -> None:
    exits = ExitsOnOneLoop()
    rows = [{name: value for name, value in row.items() if name != "gate/entropy"} for row in rows_of("high_rate")]
    assert not any(exits.look(row) for row in rows)


def test_one_loop_has_all_exits_and_that_is_no_collapse() -> None:
    exits = ExitsOnOneLoop()
    assert not any(exits.look({"gate/entropy": 0.0, "gate/exit_loop_1": 1.0}) for _ in range(100))


def standing(level: float, *, fall: float = 0.0, rate: float = 1.0, rows: int = 1600) -> list[int]:
    """Rows at which a loss that falls by `fall` each time the rows double is told to stand."""
    loss = LossStands(peak_rate=1.0, vocab_size=2048)
    losses = level - fall * np.log2(np.arange(1, rows + 1))
    return [
        step
        for step, value in enumerate(losses.tolist(), start=1)
        if loss.look({"train/loss": value, "optim/learning_rate": rate})
    ]


def test_a_loss_stands_when_it_has_not_moved_for_half_of_the_run() -> None:
    assert standing(7.6) == [400, 800, 1600]
    assert standing(8.0, fall=0.2) == [], "0.08 nats between the third and the last quarter"
    assert standing(3.0) == [], "less than half of guessing: it may be all there is to learn"
    assert standing(7.6, rate=0.09) == [], "the rate has decayed"
    assert standing(math.nan) == []
