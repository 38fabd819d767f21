"""What is minimised."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from looplm.config.schema.base import Fraction, NonNegativeFloat, Section
from looplm.config.schema.own import OrOwn, OwnObjective


class FinalCrossEntropy(Section):
    """Cross-entropy after the last loop."""

    kind: Literal["final"] = "final"
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser of the logits, which keeps them from drifting."""


class ExitPrior(Section):
    """What the exit distribution is drawn to: its divergence KL(exits || prior) is added to the loss. The prior is
    geometric, cut at the last loop (PonderNet, arXiv 2107.05407), or uniform."""

    over: Literal["token", "batch"] = "token"
    """Whose exits: those of every token by itself, or the mean over all scored tokens of a micro-batch, which leaves
    tokens free to differ (arXiv 2610.09013)."""
    halt_probability: Annotated[float, Field(gt=0.0, lt=1.0)] | None = 0.2
    """Of leaving at a loop, given that one is still in, under the prior; None: all loops are equally probable."""
    weight: PositiveFloat = 0.01
    """beta: nats of loss a nat of divergence, a token."""


class ExpectedCrossEntropy(Section):
    """Cross-entropy of every loop weighted by the exit distribution, minus an entropy bonus (arXiv 2510.25741)."""

    kind: Literal["expected"] = "expected"
    entropy_weight: NonNegativeFloat = 0.05
    """beta: nats of loss given for a nat of entropy of the exit distribution."""
    prior: ExitPrior | None = None
    """What exits are drawn to beside; None: nothing. PonderNet's loss has `entropy_weight=0`."""
    sampled_heads: PositiveInt | None = None
    """Apply the head to so many loops, drawn anew every step, with an unbiased sum; None means to all."""
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser of the logits."""


class WeightedCrossEntropy(Section):
    """Cross-entropy of every loop with fixed weights that sum to 1; needs no gate."""

    kind: Literal["weighted"] = "weighted"
    weights: Literal["uniform", "linear"] = "uniform"
    """The same for all loops, or growing with the loop's number."""
    sampled_heads: PositiveInt | None = None
    """Apply the head to so many loops, drawn anew every step, with an unbiased sum; None means to all."""
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser of the logits."""


class GateImprovement(Section):
    """Trains the gate alone, on how much the next loop improves each token's loss (arXiv 2510.25741, stage II)."""

    kind: Literal["gate"] = "gate"
    sharpness: PositiveFloat = 50.0
    """k: slope of the target sigmoid(k (improvement - threshold))."""
    threshold: NonNegativeFloat = 0.005
    """Improvement in nats above which to go on."""


class DecidedCrossEntropy(Section):
    """Mean cross-entropy of all loops, and at the same time the gate's, which learns for every token and loop whether
    one more loop lowers the loss of that token; its gradient reaches the states that it reads."""

    kind: Literal["decided"] = "decided"
    gate_weight: PositiveFloat = 0.1
    """Of the gate's cross-entropy, a mean over the decisions of a token."""
    threshold: NonNegativeFloat = 0.0
    """Nats by which the loss must fall for going on."""


class Distillation(Section):
    """Learns from a teacher (`teacher`): (1 - weight) * cross-entropy after the last loop + weight * T^2 KL(teacher ||
    own prediction), both at temperature T (arXiv 1503.02531)."""

    kind: Literal["distill"] = "distill"
    weight: Fraction = 0.5
    """Of the divergence; the cross-entropy has the rest."""
    temperature: PositiveFloat = 2.0
    """T: logits of both are divided by it."""
    loops: Literal["last", "all"] = "last"
    """Whose prediction is compared: that of the last loop, or those of all, with equal weights."""


class SelfDistillation(Section):
    """Cross-entropy after the last loop + weight * the mean over the earlier ones of T^2 KL(last loop's prediction ||
    theirs), the last one's without gradient (arXiv 2410.20672, early exits)."""

    kind: Literal["self_distill"] = "self_distill"
    weight: NonNegativeFloat = 0.1
    """Of the divergence, beside a whole cross-entropy."""
    temperature: PositiveFloat = 1.0
    """T: logits of both are divided by it."""


class ElasticCrossEntropy(Section):
    """Cross-entropy after the last loop, and a loss after one before it that is drawn anew every step: w * its
    cross-entropy + (1 - w) * T^2 KL(last loop's prediction || its own), the last one's without gradient, where w falls
    from 1 to 0. So the model is of use at every depth (arXiv 2604.09168)."""

    kind: Literal["elastic"] = "elastic"
    min_loops: PositiveInt = 1
    """The fewest loops that are drawn; from there to the last loop, all are equally probable."""
    steps: PositiveInt | None = None
    """w falls on a line and is 0 from so many steps on; None: over all of the training."""
    temperature: PositiveFloat = 1.0
    """T: logits of both are divided by it."""


class ShortcutCrossEntropy(Section):
    """Cross-entropy after the last loop of R equal steps, and two losses of a trajectory of fewer and larger steps that
    is drawn anew every step: its cross-entropy, and the mean squared distance of what the head reads from that of the
    full one, which has no gradient there (arXiv 2602.11451)."""

    kind: Literal["shortcut"] = "shortcut"
    short_weight: NonNegativeFloat = 0.1
    """Of the short trajectory's cross-entropy."""
    consistency_weight: NonNegativeFloat = 0.1
    """Of the squared distance, a mean over channels."""


class SupervisedRows(Section):
    """Rows that are answered in place, each with the same weight: the mean over its labels of the loss after the last
    loop, and the cross-entropy of the sequence gate, whose first output says whether every label of the row is met,
    and whose second, where there is one, what going on is worth (arXiv 2506.21734, 2510.04871)."""

    kind: Literal["supervised"] = "supervised"
    loss: Literal["stablemax", "softmax"] = "stablemax"
    """What makes probabilities of logits. `stablemax`: x + 1 above 0, 1 / (1 - x) below, over their sum, which cannot
    overflow (arXiv 2501.04697)."""
    gate_weight: NonNegativeFloat = 0.5
    """Of the sequence gate's cross-entropies."""


ShippedObjective = Annotated[
    FinalCrossEntropy
    | ExpectedCrossEntropy
    | WeightedCrossEntropy
    | GateImprovement
    | DecidedCrossEntropy
    | Distillation
    | SelfDistillation
    | ElasticCrossEntropy
    | ShortcutCrossEntropy
    | SupervisedRows,
    Field(discriminator="kind"),
]
Objective = Annotated[ShippedObjective | OwnObjective, OrOwn(OwnObjective)]
