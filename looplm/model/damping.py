"""What becomes of a state that a block has made: a step only part of the way, and noise."""

import jax

from looplm.config.schema import DampedCore
from looplm.model.context import Context
from looplm.model.state_init import of_tokens
from looplm.sharding.collective import split_sequence

NOISE_PURPOSE = 0x6E6F
"""Keeps the noise apart from first states, which are drawn with the same key."""


def damped(config: DampedCore, old_BSD: jax.Array, new_BSD: jax.Array, context: Context) -> jax.Array:
    """Return old + damping * (new - old) + noise. The noise of a token follows from the step's key, its sequence, its
    position, the loop and the call in it."""
    if config.damping != 1:
        new_BSD = old_BSD + config.damping * (new_BSD - old_BSD)
    if config.noise:
        loop, shape = context.loop, new_BSD.shape[-1:]
        number = loop.number_B[0] if loop.number_B.size == 1 else loop.number_B
        drawn_BSD = of_tokens(lambda key: jax.random.normal(key, shape), context, NOISE_PURPOSE, number, loop.call)
        new_BSD = new_BSD + split_sequence((config.noise * drawn_BSD).astype(new_BSD.dtype))
    return new_BSD
