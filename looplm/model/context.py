"""What every layer needs beside the activations."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax

from looplm.model.depth import Loop, once
from looplm.model.loop import Remat
from looplm.model.report import NO_REPORT, Reporting
from looplm.ops.attention import Mask


@dataclass(frozen=True)
class Context:
    """Of one forward pass; the body of the loops says in it which loop it is, and who is there."""

    positions_BS: jax.Array
    """Position of every token in its document, int32."""
    mask: Mask
    """Whom a token sees."""
    remat: Remat = "none"
    """What the backward pass recomputes; see `config.schema.Loop`."""
    unroll: bool = False
    """Write loops and layers out in the program."""
    key: jax.Array | None = None
    """Random key of the step, for what is drawn."""
    sequence_B: jax.Array | None = None
    """Index of every sequence in the global batch: what is drawn for it does not depend on how the batch is split."""
    counted_BS: jax.Array | None = None
    """True for tokens, False for padding: that uses no expert, and no sum or statistic counts it. None where all are
    tokens."""
    reporting: Reporting = NO_REPORT
    """What layers say beside their output."""
    loop: Loop = field(default_factory=once)
    """Which loop this is; outside of the loops the only one."""
    with_capacity: bool = False
    """Whether experts leave out what is above their `capacity_factor`. True in training alone: which choices are left
    out depends on the length and on the tokens before, and an answer must not."""
    left_BS: jax.Array | None = None
    """True for tokens that have left before this loop, whose keys and values are not kept; None: nobody has."""
    residual_scale: jax.Array | float = 1.0
    """What every branch is multiplied with before it is added."""
    predict: Callable[[jax.Array], jax.Array] | None = None
    """(B, S, D) of a state -> logits (B, S, V): what the head would say now, for halting rules that look at it."""
