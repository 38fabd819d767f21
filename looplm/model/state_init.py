"""The first state of the loops."""

import jax
import jax.numpy as jnp

from looplm.config.schema import EmbeddingState, InputState, NormalState, StateInit, ZeroState
from looplm.model.context import Context
from looplm.sharding.collective import split_sequence


def initial_state(config: StateInit, *, input_BSD: jax.Array, embedded_BSD: jax.Array, context: Context) -> jax.Array:
    """Make the first state, (B, S, D) like the input.

    Args:
        input_BSD: what the loops get as input.
        embedded_BSD: the token embeddings.
        context: its key and sequence numbers seed a drawn state: a token's state depends on them and its position
            only, so that a cache, a split batch or padding change nothing.
    """
    match config:
        case InputState():
            return input_BSD
        case EmbeddingState():
            return embedded_BSD
        case ZeroState():
            return jnp.zeros_like(input_BSD)
        case NormalState(std=std):
            assert context.key is not None, "a drawn state needs context.key"
            assert context.sequence_B is not None, "a drawn state needs context.sequence_B"
            return _drawn(context.key, context.sequence_B, context.positions_BS, input_BSD, std)


def _drawn(
    key: jax.Array, sequence_B: jax.Array, positions_BS: jax.Array, like_BSD: jax.Array, std: float
) -> jax.Array:
    def token(sequence: jax.Array, position: jax.Array) -> jax.Array:
        own_key = jax.random.fold_in(jax.random.fold_in(key, sequence), position)
        return std * jax.random.truncated_normal(own_key, -3.0, 3.0, like_BSD.shape[-1:])

    drawn_BSD = jax.vmap(jax.vmap(token, in_axes=(None, 0)))(sequence_B, positions_BS).astype(like_BSD.dtype)
    return split_sequence(drawn_BSD)
