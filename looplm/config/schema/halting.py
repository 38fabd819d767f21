"""Who leaves the loops early, and what all loops together give: one class a value, told apart by `kind`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from looplm.config.schema.base import NonNegativeFloat, Section
from looplm.config.schema.own import OrOwn, OwnHalting


class NeverHalting(Section):
    """Nobody leaves before the last loop, whose state is read."""

    kind: Literal["never"] = "never"


class Cost(Section):
    """What thinking longer costs: weight * (loops that a token took part in + its remainder), added to the loss of
    every token."""

    weight: NonNegativeFloat = 0.01
    """Nats of loss for a loop."""
    starts_at: NonNegativeInt = 0
    """In the training steps before this one, nothing is added (arXiv 2604.21999)."""
    grows_over: NonNegativeInt = 0
    """From then on the weight grows linearly, up to its full value after so many steps; 0: at once."""


class ACTHalting(Section):
    """Adaptive computation time. In every loop a linear unit gives the probability p that a token stops there. It stops
    as soon as the sum of its p is above the threshold; the loop at which it does gets the rest up to 1, the remainder.
    What is read is the mean of its states with these weights (arXiv 1603.08983, 1807.03819)."""

    kind: Literal["act"] = "act"
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.99
    """1 - epsilon."""
    mean: Literal["running", "sum"] = "running"
    """In every loop, u being its weight, `running`: m = u * state + (1 - u) * m (tensor2tensor). `sum`: m = m +
    u * state (Graves)."""
    rest_to_last: bool = True
    """Whether the last loop gets the rest of a token that has not stopped before. False: its weights sum to less than
    1, as in tensor2tensor."""
    freezes: bool = False
    """Whether the state of a token that has stopped stays as it is. False: it is transformed on, which others see."""
    unit_reads: Literal["before", "after"] = "before"
    """Whether p is of the state that enters a loop, sinusoidal signals of `conditioning` included (tensor2tensor), or
    of the state that the loop makes (Graves, arXiv 2604.21999)."""
    initial_bias: float = 1.0
    """Of the logit of p, whose weights are small at first; -3 begins deep (arXiv 2604.21999)."""
    cost: Cost = Cost()
    """What every loop costs."""


ShippedHalting = Annotated[NeverHalting | ACTHalting, Field(discriminator="kind")]
Halting = Annotated[ShippedHalting | OwnHalting, OrOwn(OwnHalting)]
