"""What is said of exits, caches and first states follows from their intervals."""

from typing import Any

from looplm.metrics.exit_sweep import ExitSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.report.exit_verdict import exit_verdicts
from tests.report.conftest import example_exits, example_first_states, example_kv


def of_gate(better_than_chance: float, **changes: Any) -> tuple[str, str]:
    """Tone and text of what is said of the gate."""
    exits = example_exits(better_than_chance=better_than_chance)
    exits["rules"] = [exits["rules"][0] | changes]
    (verdict,) = exit_verdicts(ExitSweep.model_validate(exits), None, None)
    return verdict.tone, verdict.text


def test_exits_that_know_and_exits_that_do_not() -> None:
    assert of_gate(0.03) == (
        "good",
        "Exits by `gate` know which tokens can leave: at `gate:0.6` (mean depth 2.80 of 4) the loss is 0.0285 nats "
        "below that of random exits of the same depth (95 % interval +0.0235 to +0.0335). `gate:0.8` saves 15 % of the "
        "loops and costs at most 0.0185 nats, with 95 % confidence.",
    )
    tone, text = of_gate(0.005, safe=[])
    assert (tone, text) == (
        "bad",
        "Exits by `gate` are no better than chance: at best `gate:0.6` (mean depth 2.80 of 4) gains +0.0048 nats on "
        "random exits of the same depth (95 % interval -0.0002 to +0.0098).",
    )
    assert of_gate(-0.03)[0] == "bad"


def test_the_best_of_several_thresholds_must_be_clearer_than_one() -> None:
    assert of_gate(0.0056)[0] == "bad"  # +0.0003 to +0.0103, the best of five
    points = example_exits(better_than_chance=0.0056)["rules"][0]["points"]
    assert of_gate(0.0056, points=points[3:4])[0] == "good"


def test_exits_that_treat_all_tokens_alike() -> None:
    points = example_exits()["rules"][0]["points"]
    tone, text = of_gate(0.03, points=[points[0], points[-1]])
    assert (tone, text) == ("neutral", "Exits by `gate` treat all tokens alike at every threshold that was tried.")


def test_the_smallest_cache_without_a_clear_loss() -> None:
    (verdict,) = exit_verdicts(None, KVLosses.model_validate(example_kv()), None)
    assert (verdict.tone, verdict.text) == (
        "good",
        "The cache `each:int8` takes 50 % of the memory and changes the loss by +0.0004 nats "
        "(95 % interval -0.0016 to +0.0024).",
    )
    losses = example_kv()
    losses["policies"] = losses["policies"][1:]
    (verdict,) = exit_verdicts(None, KVLosses.model_validate(losses), None)
    told = "Every smaller key-value cache costs quality: the least, `ring:2` costs 0.0109 nats for 50 % of the memory."
    assert (verdict.tone, verdict.text) == ("bad", told)
    losses["policies"] = [losses["policies"][0] | {"share": 1.0}]
    assert exit_verdicts(None, KVLosses.model_validate(losses), None) == []


def test_first_states() -> None:
    (verdict,) = exit_verdicts(None, None, FirstStates.model_validate(example_first_states()))
    assert verdict.tone == "neutral"
    assert verdict.text == (
        "From 4 first states the loops come to states that differ by 1 % at depth 4; "
        "99.5 % of the tokens get the same likeliest successor."
    )


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert exit_verdicts(None, None, None) == []


def test_empty_lists_say_nothing() -> None:
    exits, kv = example_exits() | {"rules": []}, example_kv() | {"policies": []}
    assert exit_verdicts(ExitSweep.model_validate(exits), KVLosses.model_validate(kv), None) == []
