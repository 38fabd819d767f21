"""What every layer needs beside the activations."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp

KeysValues = tuple[jax.Array, jax.Array]
"""Cached keys and values of one layer visit, both (B, T, K, H); slot t holds position t."""


@dataclass(frozen=True)
class Context:
    """The same for all layers and loops of one forward pass."""

    positions_BS: jax.Array
    """Position of every token in its document, int32."""
    mask_BST: jax.Array
    """True where query s sees key t."""
    remat: Literal["none", "layer", "loop", "names", "offload"] = "none"
    """What the backward pass recomputes; see `config.schema.Loop`."""
    unroll: bool = False
    """Write loops and layers out in the program."""
    key: jax.Array | None = None
    """Random key of the step, for a state that is drawn."""
    sequence_B: jax.Array | None = None
    """Index of every sequence in the global batch: what is drawn for it does not depend on how the batch is split."""
    loop_B: jax.Array = field(default_factory=lambda: jnp.zeros(1, jnp.int32))
    """Number of the loop from 0: (B,), or (1,) for all sequences. 0 outside of the loops."""
    with_routing: bool = False
    """Whether layers with experts say what their router did."""
    with_router_logits: bool = False
    """Whether that includes the logits."""
    with_capacity: bool = False
    """Whether experts leave out what is above their `capacity_factor`. True in training alone: which choices are left
    out depends on the length and on the tokens before, and an answer must not."""
    residual_scale: jax.Array | float = 1.0
    """What every branch is multiplied with before it is added. Set for the shared block only."""
