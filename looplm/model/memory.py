"""Memory over the sequence: what the layers of the loops see from before it (Transformer-XL, arXiv 1901.02860).

What a pass gets is read-only; what it leaves is in its reports. Who calls it again brings the one to the other.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.ops.attention import Mask

NOBODY = -1
"""The document of places that no token sees."""


class Memory(NamedTuple):
    """What entered every layer at the M tokens right before a sequence."""

    states_RLBMD: jax.Array
    """By loop and layer; one loop where all loops see the same."""
    seen_BM: jax.Array
    """Which of them are of the document that the sequence begins with, bool."""


def behind(mask: Mask, memory: Memory) -> Mask:
    """Lengthen a mask of whole sequences by the places of a memory, which stand before them."""
    segments_BS = mask.segments_BS
    assert segments_BS is not None, "see self_mask"
    before_BM = jnp.where(memory.seen_BM, segments_BS[:, :1], NOBODY)
    key_segments_BT = jnp.concatenate([before_BM, segments_BS], axis=1)
    return replace(mask, num_keys=key_segments_BT.shape[1], key_segments_BT=key_segments_BT)


def newest(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
    """Join what is remembered with what comes after it, and keep as many places as there were."""
    both = jnp.concatenate([old, new.astype(old.dtype)], axis=axis)
    return jax.lax.slice_in_dim(both, new.shape[axis], both.shape[axis], axis=axis)
