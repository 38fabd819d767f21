"""How the weights are changed."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import Fraction, NonNegativeFloat, Section


class AdamW(Section):
    """AdamW; weight decay on matrices only."""

    kind: Literal["adamw"] = "adamw"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1


class Muon(Section):
    """Orthogonalised momentum for the matrices of the layers, each layer's by itself; AdamW for all else."""

    kind: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    newton_schulz_steps: PositiveInt = 5
    weight_decay: NonNegativeFloat = 0.1
    adamw: AdamW = AdamW()
    """For embeddings, head, gate, norms and biases."""
    adamw_rate: PositiveFloat = 1.0
    """Their learning rate, as a multiple of optim.learning_rate."""


Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind")]


class Schedule(Section):
    """Linear warm-up to the peak, then the decay."""

    warmup_steps: NonNegativeInt = 0
    decay: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """`wsd`: constant, then linear over the last `wsd_fraction` of the steps."""
    wsd_fraction: Fraction = 0.2
    final_fraction: Fraction = 0.1
    """The rate of the last step, as a fraction of the peak."""


class Optim(Section):
    learning_rate: PositiveFloat
    """Peak learning rate."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Schedule()
    clip_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this global norm; None means never."""
    gate_rate: NonNegativeFloat = 1.0
    """Learning rate of the exit gate, as a multiple."""
    injection_rate: NonNegativeFloat = 1.0
    """Learning rate of the injection, as a multiple."""
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights with this decay a step; None means no."""
