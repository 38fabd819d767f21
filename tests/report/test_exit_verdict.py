"""What is said of exits, caches and first states follows from their intervals."""

from typing import Any

from looplm.metrics.exit_sweep import ExitSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.report.exit_verdict import exit_verdicts, rule_verdicts
from tests.report.conftest import example_exits, example_first_states, example_kv


def of_gate(better_than_chance: float, **changes: Any) -> tuple[str, str]:
    """Tone and text of what is said of the gate in its section."""
    (verdict,) = rule_verdicts(sweep(changed(better_than_chance, **changes)))
    return verdict.tone, verdict.text


def changed(better_than_chance: float, fixed: float = 0.02, **changes: Any) -> dict[str, Any]:
    """The gate's part, with all tokens at one depth so many nats above it."""
    rule = example_exits(better_than_chance=better_than_chance)["rules"][0] | changes
    points = [x | {"controls": x["controls"] | {"fixed": x["loss"] + fixed}} for x in rule["points"]]
    return rule | {"points": points}


def sweep(*rules: dict[str, Any]) -> ExitSweep:
    return ExitSweep.model_validate(example_exits() | {"rules": list(rules)})


def test_exits_that_know_and_exits_that_do_not() -> None:
    knows = "Exits by `gate` know which tokens can leave: at `gate:0.6` (mean depth 2.80 of 4) the loss is 0.0285 nats "
    knows += "below that of random exits of the same depth (95 % interval +0.0235 to +0.0335)"
    assert of_gate(0.03) == ("good", f"{knows}.")
    assert of_gate(0.03, fixed=-0.007) == ("bad", f"{knows}, yet 0.0070 above that of all tokens at one depth.")
    tone, text = of_gate(0.005)
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
    assert exit_verdicts(sweep(changed(0.03, points=[points[0]])), None, None) == []


def test_the_head_of_the_page_tells_rules_that_pay_from_others() -> None:
    safe = {"tolerance": 0.02, "confidence": 0.95, "rule": "kl:0.1", "mean_depth": 2.0, "excess_upper": -0.001}
    pays, blind = changed(0.03), changed(0.001, name="entropy", safe=[])
    knows = changed(0.03, fixed=-0.007, name="kl", safe=[safe | {"disagreement_upper": 0.1}])
    (verdict,) = exit_verdicts(sweep(pays, knows, blind, blind | {"name": "latent"}), None, None)
    assert (verdict.tone, verdict.text) == (
        "good",
        "Exits by `gate` beat random exits of the same depth, and all tokens at one depth; those by `kl` beat random "
        "ones, but not one depth for all tokens; those by `entropy` and `latent` are no better than random ones. "
        "`kl:0.1` saves 50 % of the loops and lowers the loss, with 95 % confidence.",
    )
    (verdict,) = exit_verdicts(sweep(blind), None, None)
    assert (verdict.tone, verdict.text) == ("bad", "Exits by `entropy` are no better than random ones.")
    (verdict,) = exit_verdicts(sweep(pays), None, None)
    assert verdict.text.endswith(
        "`gate:0.8` saves 15 % of the loops and costs at most 0.0185 nats, with 95 % confidence."
    )


def test_the_smallest_cache_within_the_tolerance() -> None:
    (verdict,) = exit_verdicts(None, KVLosses.model_validate(example_kv()), None)
    assert (verdict.tone, verdict.text) == (
        "good",
        "The cache `each:int8` takes 50 % of the memory and changes the loss by +0.0004 nats "
        "(95 % interval -0.0016 to +0.0024).",
    )
    losses = example_kv()
    losses["policies"] = losses["policies"][1:]
    (verdict,) = exit_verdicts(None, KVLosses.model_validate(losses), None)
    told = "No smaller key-value cache surely costs less than 0.01 nats: "
    told += "`ring:2`, for 50 % of the memory, may cost 0.0129."
    assert (verdict.tone, verdict.text) == ("bad", told)
    losses["policies"] = [losses["policies"][0] | {"share": 1.0}]
    assert exit_verdicts(None, KVLosses.model_validate(losses), None) == []


def test_one_document_says_nothing_of_others() -> None:
    one = {"num_documents": 1}
    kv, exits = KVLosses.model_validate(example_kv() | one), ExitSweep.model_validate(example_exits() | one)
    assert [verdict.tone for verdict in exit_verdicts(exits, kv, None)] == ["neutral", "neutral"]


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
