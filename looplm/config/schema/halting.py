"""Who leaves the loops early, and what all loops together give: one class a value, told apart by `kind`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

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


class DepthRouter(Section):
    """Base of the routers over depth (Mixture of Recursions, arXiv 2507.10524)."""

    hidden: bool = False
    """Whether a gelu layer of twice the model's width stands before the linear units."""
    temperature: PositiveFloat = 1.0
    """The router reads the state divided by it."""
    gating: Literal["weighted", "none"] = "weighted"
    """Whether what a token gets is multiplied with the router's score."""
    sees_left: bool = False
    """Whether tokens see the keys of those that are not in the loop, made of the states that these stopped at."""
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser of the logits."""


class ExpertChoice(DepthRouter):
    """In every loop a router of its own takes its share of the tokens that were in the loop before, those with the
    highest scores: s + score * block(s). The others keep their state. A choice among all tokens of a sequence looks
    ahead, so it is made in training alone; elsewhere a token is taken where the router, which learns to predict the
    choice, says so (arXiv 2507.10524)."""

    kind: Literal["expert_choice"] = "expert_choice"
    capacities: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...]
    """Share of the sequence's tokens that every loop takes, at least one of them; later loops take the last."""
    score: Literal["sigmoid", "tanh", "none"] = "sigmoid"
    """What makes a score of a logit."""
    alpha: PositiveFloat = 0.1
    """Scores are multiplied with it, but for `score=none`."""
    auxiliary_weight: NonNegativeFloat = 0.001
    """Weight of the cross-entropy of the router with the choice that was made, summed over loops."""
    gathers: bool = False
    """Whether in training a loop computes the rows of the tokens that it takes and no others: the same numbers in less
    time. Needs a fixed depth and `loop.unroll`. False: all rows are computed, and those of the others left out."""


class TokenChoice(DepthRouter):
    """Before the first loop a router gives every token its number of loops, the likeliest. Its output is s_0 + score *
    (its state after its last loop) (arXiv 2507.10524)."""

    kind: Literal["token_choice"] = "token_choice"
    loops: PositiveInt
    """The most loops that a token can be given; more than these change nothing."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """What makes scores of logits."""
    alpha: PositiveFloat = 1.0
    """Scores are multiplied with it."""
    balance_weight: NonNegativeFloat = 0.1
    """Weight of the balance loss: loops * sum over depths of (share of the tokens) * (mean score), over a batch."""


ShippedHalting = Annotated[NeverHalting | ACTHalting | ExpertChoice | TokenChoice, Field(discriminator="kind")]
Halting = Annotated[ShippedHalting | OwnHalting, OrOwn(OwnHalting)]
