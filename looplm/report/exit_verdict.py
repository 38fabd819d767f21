"""Sentences about exits, caches and first states; nothing is said of what was not measured."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from looplm.metrics.exit_sweep import ExitPoint, ExitSweep, RuleSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.report.verdict import Tone, Verdict, clearly, decimals

INSIDE = 0.05
"""A mean depth that is farther from one loop and from all of them shows what a rule can tell."""


TOLERANCE = 0.01
"""Nats that a smaller cache may cost at most, by the end of its interval, to be recommended."""


class Worth(NamedTuple):
    """What a rule is worth where it gains most."""

    rule: RuleSweep
    best: ExitPoint
    knows: bool
    """Whether it is clearly better than random exits of the same mean depth."""

    @property
    def pays(self) -> bool:
        """Whether it is also better than all tokens at one depth."""
        return self.knows and self.best.loss < self.best.controls.fixed


def exit_verdicts(exits: ExitSweep | None, kv: KVLosses | None, first_states: FirstStates | None) -> list[Verdict]:
    """Return the sentences for the head of the page; None stands for what was not measured."""
    found: list[Verdict] = []
    if exits is not None:
        found += _all_rules(exits)
    if kv is not None:
        found += _policies(kv)
    if first_states is not None:
        found += _first_states(first_states)
    return found


def worth_of(exits: ExitSweep, rule: RuleSweep) -> Worth | None:
    """Return what a rule is worth; None where it treats all tokens alike at every threshold that was tried."""
    inside = [point for point in rule.points if 1 + INSIDE < point.mean_depth < exits.num_loops - INSIDE]
    if not inside:
        return None
    best = max(inside, key=lambda point: point.gain)
    return Worth(rule, best, clearly(best.gain, best.gain_low, best.gain_high, among=len(inside)) > 0)


def rule_verdicts(exits: ExitSweep) -> list[Verdict]:
    """Return a sentence for every rule."""
    return [_rule(exits, rule) for rule in exits.rules]


def _rule(exits: ExitSweep, rule: RuleSweep) -> Verdict:
    worth = worth_of(exits, rule)
    if worth is None:
        return Verdict("neutral", f"Exits by `{rule.name}` treat all tokens alike at every threshold that was tried.")
    best = worth.best
    digits = max(4, decimals(best.gain_high - best.gain_low))
    at = f"`{best.rule}` (mean depth {best.mean_depth:.2f} of {exits.num_loops})"
    ends = f"95 % interval {best.gain_low:+.{digits}f} to {best.gain_high:+.{digits}f}"
    if not worth.knows:
        told = f"at best {at} gains {best.gain:+.{digits}f} nats on random exits of the same depth ({ends})"
        return Verdict("bad", f"Exits by `{rule.name}` are no better than chance: {told}.")
    text = f"Exits by `{rule.name}` know which tokens can leave: at {at} the loss is {best.gain:.{digits}f} nats below "
    text += f"that of random exits of the same depth ({ends})"
    if not worth.pays:
        missed = best.loss - best.controls.fixed
        return Verdict(
            "bad", f"{text}, yet {missed:.{max(4, decimals(missed))}f} above that of all tokens at one depth."
        )
    return Verdict("good", f"{text}.")


def _all_rules(exits: ExitSweep) -> Iterator[Verdict]:
    if exits.num_documents < 2:
        yield Verdict("neutral", "Exits were measured on one document, which says nothing of what they cost on others.")
        return
    worth = [found for rule in exits.rules if (found := worth_of(exits, rule))]
    pays, knows = [x for x in worth if x.pays], [x for x in worth if x.knows and not x.pays]
    neither = [x for x in worth if not x.knows]
    parts = []
    if pays:
        parts.append(f"Exits by {_named(pays)} beat random exits of the same depth, and all tokens at one depth")
    if knows:
        parts.append(
            f"{'those' if parts else 'Exits'} by {_named(knows)} beat random ones, but not one depth for all tokens"
        )
    if neither:
        parts.append(f"{'those' if parts else 'Exits'} by {_named(neither)} are no better than random ones")
    if parts:
        tone: Tone = "good" if pays else "bad"
        yield Verdict(tone, f"{'; '.join(parts)}.{_safe(exits)}")


def _named(worth: Sequence[Worth]) -> str:
    names = [f"`{one.rule.name}`" for one in worth]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _safe(exits: ExitSweep) -> str:
    """Say which threshold saves most at the smallest tolerance."""
    safe = [one for rule in exits.rules for one in rule.safe]
    if not safe:
        return ""
    one = min(safe, key=lambda found: (found.tolerance, found.mean_depth))
    saved = f" `{one.rule}` saves {100 * (1 - one.mean_depth / exits.num_loops):.0f} % of the loops"
    confidence = f"with {100 * one.confidence:.0f} % confidence"
    if one.excess_upper < 0:
        return f"{saved} and lowers the loss, {confidence}."
    return f"{saved} and costs at most {one.excess_upper:.4f} nats, {confidence}."


def _policies(kv: KVLosses) -> Iterator[Verdict]:
    smaller = [one for one in kv.policies if one.share < 1]
    if not smaller:
        return
    if kv.num_documents < 2:
        yield Verdict(
            "neutral", "Caches were measured on one document, which says nothing of what they cost on others."
        )
        return
    if free := [one for one in smaller if one.change_high <= TOLERANCE]:
        one = min(free, key=lambda policy: policy.share)
        digits = max(4, decimals(one.change_high - one.change_low))
        ends = f"95 % interval {one.change_low:+.{digits}f} to {one.change_high:+.{digits}f}"
        cost = f"changes the loss by {one.change:+.{digits}f} nats ({ends})"
        yield Verdict("good", f"The cache `{one.policy}` takes {100 * one.share:.0f} % of the memory and {cost}.")
    else:
        one = min(smaller, key=lambda policy: policy.change_high)
        cost = f"`{one.policy}`, for {100 * one.share:.0f} % of the memory, may cost {one.change_high:.4f}"
        yield Verdict("bad", f"No smaller key-value cache surely costs less than {TOLERANCE:g} nats: {cost}.")


def _first_states(one: FirstStates) -> Iterator[Verdict]:
    depth, distance, agreement = one.depths[-1], one.state_distance[-1], one.agreement[-1]
    text = (
        f"From {one.num_states} first states the loops come to states that differ by {100 * distance:.2g} % at depth "
    )
    yield Verdict("neutral", f"{text}{depth}; {100 * agreement:.1f} % of the tokens get the same likeliest successor.")
