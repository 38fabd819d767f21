"""What a run keeps of a batch from one optimizer step to the next."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from looplm.config.schema.base import Fraction, Section


class NoCarry(Section):
    """Every step begins with a batch and keeps nothing of it."""

    kind: Literal["none"] = "none"


class DeepSupervision(Section):
    """A row of the batch stays for several steps. Each is a segment: it goes on from the state that the one before
    left, without its gradient, and has a loss and an update of its own. A row that has halted makes room for the one
    that comes in its place; what comes for a row that stays is left out (arXiv 2506.21734, section 2)."""

    kind: Literal["segments"] = "segments"
    max_segments: PositiveInt = 16
    """A row halts after so many at the latest."""
    exploration: Fraction = 0.1
    """Share of the rows, drawn anew every step, that may not halt before a number of segments that is drawn between 2
    and the most."""


Carry = Annotated[NoCarry | DeepSupervision, Field(discriminator="kind")]
