"""The text form of exit rules, as the command line and `lm.generate` take it.

    gate:Q         the cumulative exit probability of the gate reaches Q
    kl:X           KL between the predictions of successive loops is below X nats
    latent:X       the state changes by less than X of its length
    entropy:X      the entropy of the prediction is below X nats
    argmax:N       the likeliest token has been the same in N loops in a row
    confidence:Q   the likeliest token has at least probability Q

`,patience=N` after a rule asks that it holds in N loops in a row, `,min=N` that N loops have run. `+` means "and", `|`
means "or", and `+` binds closer.
"""

from dataclasses import dataclass
from functools import reduce

from looplm.config.schema import Model
from looplm.errors import UserError
from looplm.model import exits
from looplm.model.exits import Exits
from looplm.model.lm import LoopLM

EXAMPLES = "gate:0.9, kl:0.001, latent:0.03, entropy:1.5, argmax:3, confidence:0.9"
SHARES = ("gate", "confidence")
"""Rules whose value is a probability."""
COUNTS = ("argmax",)
TOLERANCES = ("kl", "latent", "entropy")
OPTIONS = ("patience", "min")


@dataclass(frozen=True)
class OneRule:
    """A rule with its value and options, as it was written."""

    name: str
    value: float
    patience: int = 1
    least: int = 1

    def build(self, model: LoopLM) -> exits.Rule:
        """Make the rule for a model."""
        match self.name:
            case "gate":
                assert model.gate is not None, "parse_exit has seen to it"
                rule: exits.Rule = exits.GateExit(model.gate, self.value)
            case "kl":
                rule = exits.Divergence(self.value, model.config.vocab_size)
            case "latent":
                rule = exits.LatentDifference(self.value)
            case "entropy":
                rule = exits.Entropy(self.value)
            case "argmax":
                rule = exits.StableArgmax(int(self.value))
            case _:
                rule = exits.Confidence(self.value)
        plain = self.patience == 1 and self.least == 1
        return rule if plain else exits.Patient(rule, self.patience, self.least)


@dataclass(frozen=True)
class ExitRule:
    """What was written: a token leaves when all rules of one of the groups let it."""

    groups: tuple[tuple[OneRule, ...], ...]

    def build(self, model: LoopLM) -> Exits:
        """Make the halting rule for a model."""

        def join(rules: list[exits.Rule], *, both: bool) -> exits.Rule:
            return reduce(lambda first, second: exits.Joined(first, second, both=both), rules)

        groups = [join([rule.build(model) for rule in group], both=True) for group in self.groups]
        return Exits(join(groups, both=False))


def parse_exit(text: str | None, model: Model) -> ExitRule | None:
    """Read a rule. None stays None: no token leaves early.

    Raises UserError for an unknown rule or option, a value out of range, or a gate rule for a model without a gate.
    """
    if text is None:
        return None
    rule = ExitRule(tuple(tuple(_one(text, part) for part in group.split("+")) for group in text.split("|")))
    if model.exit_gate is None and any(one.name == "gate" for group in rule.groups for one in group):
        raise UserError(
            f"exit rule {text!r} needs an exit gate, and this model has none; use another rule, e.g. latent:0.03, "
            "or --loops N"
        )
    return rule


def _one(text: str, part: str) -> OneRule:
    rule, *options = part.strip().split(",")
    name, _, value = rule.partition(":")
    if name not in SHARES + COUNTS + TOLERANCES:
        raise UserError(f"exit rule {text!r}: {name!r} is not known; use one of {EXAMPLES}")
    if name in SHARES:
        number, fits, wanted = _number(value), lambda x: 0 < x <= 1, "in (0, 1]"
    elif name in COUNTS:
        number, fits, wanted = _number(value), lambda x: x >= 1 and x == int(x), "a whole number of at least 1"
    else:
        number, fits, wanted = _number(value), lambda x: 0 < x < float("inf"), "above 0"
    if number is None or not fits(number):
        raise UserError(f"exit rule {text!r}: the value {value!r} of {name} is not {wanted}; use e.g. {EXAMPLES}")
    return OneRule(name, number, **_options(text, options))


def _options(text: str, options: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for option in options:
        name, _, value = option.strip().partition("=")
        if name not in OPTIONS:
            raise UserError(f"exit rule {text!r}: {name!r} is no option; use patience=N or min=N, e.g. kl:0.001,min=2")
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"exit rule {text!r}: {name}={value} is not a whole number of at least 1")
        counts["least" if name == "min" else name] = int(value)
    return counts


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
