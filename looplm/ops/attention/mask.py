"""Who may look at whom: boolean masks (B, S, T), True where query s sees key t."""

import jax
import jax.numpy as jnp

from looplm.config.schema import Model
from looplm.sharding.collective import lay_out


def self_mask(config: Model, segments_BS: jax.Array, prefix_BS: jax.Array | None = None) -> jax.Array:
    """The mask of whole sequences.

    A token sees, of its own document (equal segment ids): what precedes it and itself (causal); with a prefix also
    every token of the prefix, whether it is in it or not; or everything (full). A window keeps the nearest tokens.

    Args:
        prefix_BS: True for tokens of a prefix; None means there is none. Only the prefix mask looks at it.

    Returns:
        (B, S, S).
    """
    index_S = jnp.arange(segments_BS.shape[1])
    distance_SS = index_S[:, None] - index_S[None, :]
    mask_BST = segments_BS[:, :, None] == _keys(segments_BS)
    if config.attention_mask != "full":
        past_BST = (distance_SS >= 0)[None]
        if config.attention_mask == "prefix" and prefix_BS is not None:
            past_BST = past_BST | _keys(prefix_BS)
        mask_BST &= past_BST
    if config.attention_window is not None:
        mask_BST &= (jnp.abs(distance_SS) < config.attention_window)[None]
    return mask_BST


def _keys(x_BS: jax.Array) -> jax.Array:
    """(B, 1, T), whole where the sequence of the queries is split over devices."""
    return lay_out(x_BS, "batch", "all_keys")[:, None, :]


def cached_mask(config: Model, positions_BS: jax.Array, cache_length: int) -> jax.Array:
    """With a cache whose slot t holds position t: a token at position p sees slots 0..p, or the last of them that its
    window holds. Returns (B, S, T)."""
    distance_BST = positions_BS[:, :, None] - jnp.arange(cache_length)[None, None, :]
    window = cache_length if config.attention_window is None else config.attention_window
    return (distance_BST >= 0) & (distance_BST < window)
