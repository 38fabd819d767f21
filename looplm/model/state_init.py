"""The first state of the loops."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import EmbeddingState, InputState, NormalState, StateInit, VectorState, ZeroState
from looplm.model.context import Context
from looplm.model.init import truncated_normal
from looplm.model.layers import parameter
from looplm.sharding.collective import per_channel, split_sequence, use


def first_vector(config: StateInit, dim: int, *, rngs: nnx.Rngs) -> nnx.Param | None:
    """Declare the vector that is the first state; None where it is none."""
    if not isinstance(config, VectorState):
        return None
    return parameter(rngs, truncated_normal(1.0, 2.0, corrected=True), (dim,), ("embed",), elementwise=True)


def initial_state(
    config: StateInit,
    *,
    input_BSD: jax.Array,
    embedded_BSD: jax.Array,
    context: Context,
    vector: nnx.Param | None = None,
    stream: int = 0,
) -> jax.Array:
    """Make the first state, (B, S, D) like the input.

    Args:
        input_BSD: what the loops get as input.
        embedded_BSD: the token embeddings.
        context: its key and sequence numbers seed a drawn state: a token's state depends on them and its position
            only, so that a cache, a split batch or padding change nothing.
        vector: see `first_vector`.
        stream: number of the state among several, each of which is drawn by itself.
    """
    match config:
        case InputState():
            return input_BSD
        case EmbeddingState():
            return embedded_BSD
        case ZeroState():
            return jnp.zeros_like(input_BSD)
        case NormalState():
            return _drawn(config, context, input_BSD, stream)
        case VectorState(learned=learned):
            assert vector is not None, "see first_vector"
            value_D = use(vector, input_BSD.dtype)
            if not learned:
                value_D = jax.lax.stop_gradient(value_D)
            return per_channel(jnp.add, [value_D], jnp.zeros_like(input_BSD))


def of_tokens(draw: Callable[[jax.Array], jax.Array], context: Context, *purpose: int | jax.Array) -> jax.Array:
    """Draw for every token what `draw` makes of a key of its own: that of the step, folded with each number of the
    purpose, int32 () or (B,), with the token's sequence and with its position."""
    assert context.key is not None, "what is drawn needs context.key"
    assert context.sequence_B is not None, "what is drawn needs context.sequence_B"

    def token(key: jax.Array, sequence: jax.Array, position: jax.Array) -> jax.Array:
        return draw(jax.random.fold_in(jax.random.fold_in(key, sequence), position))

    key = context.key
    for number in purpose:
        keys, numbers = (0 if jnp.ndim(key) else None, 0 if jnp.ndim(number) else None)
        fold = jax.random.fold_in
        key = fold(key, number) if keys is numbers is None else jax.vmap(fold, in_axes=(keys, numbers))(key, number)
    of_sequence = jax.vmap(token, in_axes=(None, None, 0))
    return jax.vmap(of_sequence, in_axes=(0 if jnp.ndim(key) else None, 0, 0))(
        key, context.sequence_B, context.positions_BS
    )


def _drawn(config: NormalState, context: Context, like_BSD: jax.Array, stream: int) -> jax.Array:
    law = truncated_normal(config.std, config.cut, corrected=config.corrected)

    def token(key: jax.Array) -> jax.Array:
        return law(key, like_BSD.shape[-1:])

    drawn_BSD = of_tokens(token, context, *((stream,) if stream else ()))
    return split_sequence(drawn_BSD.astype(like_BSD.dtype))
