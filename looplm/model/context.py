"""What every layer needs beside the activations."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax

from looplm.model.depth import Loop, once
from looplm.model.loop import Remat
from looplm.model.positions import RelativeVectors
from looplm.model.report import NO_REPORT, Reporting
from looplm.ops.attention import Mask


@dataclass(frozen=True)
class Context:
    """What every layer needs of a forward pass. The body of the loops fills in which loop it is and who takes part."""

    positions_BS: jax.Array
    """Position of every token in its document, int32."""
    mask: Mask
    """Whom a token sees."""
    remat: Remat = "none"
    """What the backward pass recomputes; see `config.schema.Loop`."""
    unroll: bool = False
    """Whether loops and layers are written out in the program."""
    key: jax.Array | None = None
    """Random key of the step, from which first states are drawn."""
    drop_words_2: jax.Array | None = None
    """Two words drawn for the step, uint32, from which follows what adapters leave out. None: they leave out
    nothing."""
    sequence_B: jax.Array | None = None
    """Index of every sequence in the global batch, so that what is drawn for it does not depend on how the batch is
    split."""
    types_BS: jax.Array | None = None
    """Kind of every token, int32, for `model.token_types`; None: all are of the first."""
    ids_B: jax.Array | None = None
    """Id of every sequence, int32, for `front.ids`; None where there are none."""
    counted_BS: jax.Array | None = None
    """True for tokens, False for padding, which uses no expert and is counted by no sum or statistic. None: all are
    tokens."""
    reporting: Reporting = NO_REPORT
    """What layers are asked to report beside their output."""
    loop: Loop = field(default_factory=once)
    """Which loop this is; outside of the loops the only one."""
    with_capacity: bool = False
    """Whether experts leave out what is above their `capacity_factor`. True in training alone: which choices are left
    out depends on the length and on the tokens before, and an answer must not."""
    relative_vectors: RelativeVectors | None = None
    """Of the stack, where its layers have none of their own; it fills them in."""
    left_BS: jax.Array | None = None
    """True for tokens whose keys and values are not kept: they have left, or stand for none. None: all are kept."""
    row_B: jax.Array | None = None
    """Row of the cache that every sequence goes on from; see `Visit`."""
    inner_backprop: jax.Array | None = None
    """At most so many inner loops of a loop have a gradient, int32 (); None: as many as the core says."""
    step_size: float = 1.0
    """How far a loop goes from the state that it got to the one that it made; 1 is all of the way."""
    residual_scale: jax.Array | float = 1.0
    """What every branch is multiplied with before it is added."""
    condition_BD: jax.Array | None = None
    """What modulates the branches of the loops' layers; None: nothing does."""
    predict: Callable[[jax.Array], jax.Array] | None = None
    """What is read of a state (B, S, D) -> the logits (B, S, V) that the head would give now; for halting rules."""
