"""Sentences about exits, caches and first states; nothing is said of what was not measured."""

from collections.abc import Iterator

from looplm.metrics.exit_sweep import ExitSweep, RuleSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.report.verdict import Verdict, clearly

INSIDE = 0.05
"""A mean depth that is farther from one loop and from all of them shows what a rule can tell."""


def exit_verdicts(exits: ExitSweep | None, kv: KVLosses | None, first_states: FirstStates | None) -> list[Verdict]:
    """Return the sentences; None stands for what was not measured."""
    found: list[Verdict] = []
    if exits is not None:
        found += [verdict for rule in exits.rules for verdict in _rule(exits, rule)]
    if kv is not None:
        found += _policies(kv)
    if first_states is not None:
        found += _first_states(first_states)
    return found


def _rule(exits: ExitSweep, rule: RuleSweep) -> Iterator[Verdict]:
    inside = [point for point in rule.points if 1 + INSIDE < point.mean_depth < exits.num_loops - INSIDE]
    if not inside:
        yield Verdict("neutral", f"Exits by `{rule.name}` treat all tokens alike at every threshold that was tried.")
        return
    best = max(inside, key=lambda point: point.gain)
    at = f"`{best.rule}` (mean depth {best.mean_depth:.2f} of {exits.num_loops})"
    ends = f"95 % interval {best.gain_low:+.4f} to {best.gain_high:+.4f}"
    if clearly(best.gain, best.gain_low, best.gain_high, among=len(inside)) > 0:
        text = f"Exits by `{rule.name}` know which tokens can leave: at {at} the loss is {best.gain:.4f} nats below "
        yield Verdict("good", f"{text}that of random exits of the same depth ({ends}).{_safe(rule, exits)}")
    else:
        told = f"at best {at} gains {best.gain:+.4f} nats on random exits of the same depth ({ends})"
        yield Verdict("bad", f"Exits by `{rule.name}` are no better than chance: {told}.{_safe(rule, exits)}")


def _safe(rule: RuleSweep, exits: ExitSweep) -> str:
    if not rule.safe:
        return ""
    one = min(rule.safe, key=lambda safe: safe.tolerance)
    saved = 1 - one.mean_depth / exits.num_loops
    text = f" `{one.rule}` saves {100 * saved:.0f} % of the loops and costs at most {one.excess_upper:.4f} nats"
    return f"{text}, with {100 * one.confidence:.0f} % confidence."


def _policies(kv: KVLosses) -> Iterator[Verdict]:
    smaller = [one for one in kv.policies if one.share < 1]
    if not smaller:
        return
    free = [one for one in smaller if clearly(one.change, one.change_low, one.change_high, among=len(smaller)) <= 0]
    if free:
        one = min(free, key=lambda policy: policy.share)
        ends = f"95 % interval {one.change_low:+.4f} to {one.change_high:+.4f}"
        cost = f"changes the loss by {one.change:+.4f} nats ({ends})"
        yield Verdict("good", f"The cache `{one.policy}` takes {100 * one.share:.0f} % of the memory and {cost}.")
    else:
        one = min(smaller, key=lambda policy: policy.change)
        cost = f"`{one.policy}` costs {one.change:.4f} nats for {100 * one.share:.0f} % of the memory"
        yield Verdict("bad", f"Every smaller key-value cache costs quality: the least, {cost}.")


def _first_states(one: FirstStates) -> Iterator[Verdict]:
    depth, distance, agreement = one.depths[-1], one.state_distance[-1], one.agreement[-1]
    text = (
        f"From {one.num_states} first states the loops come to states that differ by {100 * distance:.2g} % at depth "
    )
    yield Verdict("neutral", f"{text}{depth}; {100 * agreement:.1f} % of the tokens get the same likeliest successor.")
