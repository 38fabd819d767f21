"""Numbers that look drawn, made of counters: elementwise, so that they lie where what they are for lies."""

import jax
import jax.numpy as jnp


def mix(word: jax.Array) -> jax.Array:
    """Map uint32 words to others, one to one; every bit of the result depends on every bit of the word (constants of
    Prospector, https://github.com/skeeto/hash-prospector)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def coins(words_BS: jax.Array, like: jax.Array, rate: float, *, dims: tuple[int, int]) -> jax.Array:
    """Toss a coin for every entry of an activation: True with probability 1 - rate, in its shape and layout.

    Args:
        words_BS: a uint32 for every token.
        like: the activation; what is tossed depends on places in it, and not on how it is split.
        dims: which of its dims are B and S.
    """
    sharding = None
    if not jax.sharding.get_abstract_mesh().empty:
        sharding = jax.typeof(like).sharding
        words_BS = jax.sharding.reshard(words_BS, jax.sharding.PartitionSpec(*(sharding.spec[dim] for dim in dims)))
    word = jax.lax.broadcast_in_dim(words_BS, like.shape, dims, out_sharding=sharding)
    for dim in set(range(like.ndim)) - set(dims):
        word = mix(word + jax.lax.broadcasted_iota(jnp.uint32, like.shape, dim, out_sharding=sharding))
    return mix(word) >= jnp.uint32(round(rate * 2**32))
