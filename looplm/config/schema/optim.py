"""How the weights are changed."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import Fraction, NonNegativeFloat, Section


class AdamW(Section):
    """AdamW; weight decay on matrices only."""

    kind: Literal["adamw"] = "adamw"
    beta1: Fraction = 0.9
    """Decay a step of the mean of gradients."""
    beta2: Fraction = 0.95
    """Decay a step of the mean of their squares."""
    eps: PositiveFloat = 1e-8
    """Added to the root of that mean."""
    weight_decay: NonNegativeFloat = 0.1
    """Share of a weight that is taken off a step, times the learning rate."""


class Muon(Section):
    """Orthogonalised momentum for the matrices of the layers, each layer's by itself; AdamW for all else."""

    kind: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    """Decay a step of the sum of gradients."""
    newton_schulz_steps: PositiveInt = 5
    """Turns of the iteration that makes it orthogonal."""
    weight_decay: NonNegativeFloat = 0.1
    """Share of a weight that is taken off a step, times the learning rate."""
    adamw: AdamW = AdamW()
    """For embeddings, head, gate, norms and biases."""
    adamw_rate: PositiveFloat = 1.0
    """Their learning rate, as a multiple of optim.learning_rate."""


class AdamATan2(Section):
    """AdamW whose step is atan2(mean, root of the mean square) in place of their quotient: at most pi / 2, and it needs
    no eps (arXiv 2407.05872, section 3.2)."""

    kind: Literal["adam_atan2"] = "adam_atan2"
    beta1: Fraction = 0.9
    """Decay of the mean of the gradients, a step."""
    beta2: Fraction = 0.95
    """Decay of the mean of their squares, a step."""
    weight_decay: NonNegativeFloat = 0.1
    """Share of a weight that is taken off a step, times the learning rate."""


class RowSign(Section):
    """For tables of which a step reads a few rows, such as the ids of `model.front`: the sign of the gradient, and
    weight decay, for the rows that the step has read (arXiv 2506.21734, official code)."""

    weight_decay: NonNegativeFloat = 0.1
    """Share of a row that is taken off in a step that reads it, times the learning rate."""


Optimizer = Annotated[AdamW | AdamATan2 | Muon, Field(discriminator="kind")]


class Schedule(Section):
    """Linear warm-up to the peak, then the decay."""

    warmup_steps: NonNegativeInt = 0
    """Steps of a rate that grows from 0 to the peak."""
    decay: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """`wsd`: constant, then linear over the last `wsd_fraction` of the steps."""
    wsd_fraction: Fraction = 0.2
    """Share of the steps in which `wsd` decays."""
    final_fraction: Fraction = 0.1
    """The rate of the last step, as a fraction of the peak."""


class Guard(Section):
    """Which updates are not made: those with a loss or gradient norm that is not finite, and these."""

    spike_deviations: PositiveFloat | None = 20.0
    """A value that is so many robust standard deviations above the median of the last 128 good ones is a spike (32 are
    needed); None: only what is not finite or above a ceiling is bad."""
    max_loss: PositiveFloat | None = None
    """Ceiling of the loss, from the first step on; None means none."""
    max_grad_norm: PositiveFloat | None = None
    """Ceiling of the gradient norm (before clipping), from the first step on; None means none."""
    stop_after: PositiveInt = 10
    """So many bad updates in a row stop the run with exit code 76."""
    rewinds: NonNegativeInt = 0
    """Instead of stopping, go back to the last checkpoint and pass over the batches since; so many times at most."""
    sdc_check: NonNegativeInt = 0
    """Every so many steps look for silent data corruption: one gradient is computed twice, copies of the weights are
    compared; 0 means never."""


class Optim(Section):
    """How the weights are changed."""

    learning_rate: PositiveFloat
    """Peak learning rate."""
    optimizer: Optimizer = AdamW()
    """What turns a gradient into an update."""
    ids: RowSign = RowSign()
    """Of tables of ids, whatever the optimizer of all else; their learning rate is in `rates`."""
    schedule: Schedule = Schedule()
    """The learning rate over steps."""
    clip_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this global norm; None means never."""
    gate_rate: NonNegativeFloat = 1.0
    """Learning rate of the exit gate, as a multiple."""
    injection_rate: NonNegativeFloat = 1.0
    """Learning rate of the injection, as a multiple."""
    rates: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Learning rates of further parts, as multiples: `{"embedding": 0.1, "coda.*": 0.5}`; where several mean a
    parameter, their product. Parts are named as in `train`."""
    train: tuple[str, ...] = ()
    """Parts that learn; empty means the adapter, or everything where there is none. A part is a group (`gate`,
    `injection`, `layers`, `adapter`), names on the path of its parameters (`embedding`, `core.block`, `attention`), or
    a pattern of such names (`*.norm.scale`)."""
    frozen: tuple[str, ...] = ()
    """Parts that do not learn: they have no gradient and no optimizer state."""
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights with this decay a step; None means no."""
    guard: Guard = Guard()
    """Updates that would spoil the weights are skipped."""
