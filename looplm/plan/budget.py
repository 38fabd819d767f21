"""What a number of tokens takes and costs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from looplm.errors import UserError

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Budget:
    """Tokens, and the least that they take."""

    tokens: float
    num_steps: int
    flops: float
    """Model FLOPs of all of it."""
    days: float
    """At the bound: the least."""
    expected_days: float | None
    """At the MFU that the user expects."""
    mfu: float | None
    """What the user expects."""
    num_chips: int
    price: float | None
    """Of a chip-hour, as the user gave it."""

    @property
    def cost(self) -> float | None:
        """In the unit of the price: of the expected days, else of the least."""
        days = self.days if self.expected_days is None else self.expected_days
        return None if self.price is None else days * 24 * self.num_chips * self.price

    def lines(self) -> Iterator[str]:
        """Yield lines for the console."""
        yield (
            f"{self.tokens:.3g} tokens: {self.num_steps:,} steps, {self.flops:.3g} FLOPs, at least {self.days:.3g} days"
            + (
                ""
                if self.expected_days is None
                else f"; {self.expected_days:.3g} days at the MFU given, {self.mfu:.0%}"
            )
        )
        if self.cost is None:
            yield f"cost: {self.days * 24 * self.num_chips:,.0f} chip-hours at the least; --price says what one is"
        else:
            least = "at least " * (self.expected_days is None)
            yield f"cost: {least}{self.cost:,.0f}, at the price given, {self.price:g} a chip-hour"


def parse_tokens(words: str) -> float:
    """Read e.g. 3e12, 40B or 1.5T. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:[eE]\+?\d+)?)([KMBT]?)", words)
    if match is None or not float(match[1]):
        raise UserError(f"--tokens {words} is no number of tokens; use e.g. 3e12, 40B or 1.5T")
    return float(match[1]) * UNITS[match[2]]
