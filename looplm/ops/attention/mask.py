"""Who may look at whom: boolean masks (B, S, T), True where query s sees key t."""

import jax
import jax.numpy as jnp


def causal_mask(segments_BS: jax.Array) -> jax.Array:
    """A token sees itself and what precedes it in its own document (segment ids equal). Returns (B, S, S)."""
    length = segments_BS.shape[1]
    index_S = jnp.arange(length)
    past_SS = index_S[:, None] >= index_S[None, :]
    return (segments_BS[:, :, None] == segments_BS[:, None, :]) & past_SS[None]


def cached_mask(positions_BS: jax.Array, cache_length: int) -> jax.Array:
    """With a cache whose slot t holds position t: a token at position p sees slots 0..p. Returns (B, S, T)."""
    return positions_BS[:, :, None] >= jnp.arange(cache_length)
