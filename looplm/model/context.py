"""What every layer needs beside the activations."""

from dataclasses import dataclass
from typing import Literal

import jax

KeysValues = tuple[jax.Array, jax.Array]
"""Cached keys and values of one layer visit, both (B, T, K, H); slot t holds position t."""


@dataclass(frozen=True)
class Context:
    """The same for all layers and loops of one forward pass."""

    positions_BS: jax.Array
    """Position of every token in its document, int32."""
    mask_BST: jax.Array
    """True where query s sees key t."""
    remat: Literal["none", "layer", "loop"] = "none"
    """What the backward pass recomputes."""
    unroll: bool = False
    """Write loops and layers out in the program."""
