"""Where a model spends its loops: `eval/classes-<step>.json`, by `looplm eval --classes`."""

from typing import Literal

from looplm.metrics.stored import Measured, Stored

KIND = "classes"


class TokenClass(Stored):
    """Tokens that have something in common. Intervals are 95 %, by bootstrap over documents."""

    name: str
    tokens: int
    loops: float
    loops_low: float
    loops_high: float
    """Mean loops of a token."""
    loss: float
    """Nats per token, at the full depth."""


class Classing(Stored):
    """A way to tell tokens apart; every scored token is in one class."""

    name: str
    classes: list[TokenClass]


class LoopsByClass(Measured):
    """Loops that the model gives to every token, by what the token is."""

    num_loops: int
    """R, the most."""
    of: Literal["halting rule", "exit gate"]
    """Whose loops they are: those until the halting rule let a token go, or what the gate's distribution expects."""
    mean_loops: float
    classings: list[Classing]
