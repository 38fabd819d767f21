"""What the last loop did to the state: the measures that show a collapsing or idle loop before the loss does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LoopStatistics(NamedTuple):
    """Of one loop."""

    state_norm_BS: jax.Array
    """Root mean square of the state over D."""
    residual_rel_BS: jax.Array
    """|s_t - s_{t-1}| / |s_t|: what the loop changed; towards 0 the loop idles."""
    update_cosine_BS: jax.Array
    """Cosine of this loop's update s_t - s_{t-1} with the one before; 0 after a single loop, which has none before.
    Near 1 the state drifts on, near -1 it swings to and fro."""
    token_correlation_B: jax.Array
    """Mean cosine between the states of different tokens of a sequence; at 1 all tokens are alike: a collapse."""


def loop_statistics(
    state_BSD: jax.Array, before_BSD: jax.Array, earlier_BSD: jax.Array, *, counted_BS: jax.Array | None = None
) -> LoopStatistics:
    """Compares a loop's state with the one before it, and that with the one before. Float32, without gradient.

    counted_BS: True where a token is none of the padding; None where all are tokens.
    """
    states = jax.lax.stop_gradient((state_BSD, before_BSD, earlier_BSD))
    state_BSD, before_BSD, earlier_BSD = (x.astype(jnp.float32) for x in states)
    update_BSD, last_update_BSD = state_BSD - before_BSD, before_BSD - earlier_BSD
    tiny = 1e-30
    squared_BS, changed_BS, last_changed_BS = (
        jnp.sum(jnp.square(x), axis=-1) for x in (state_BSD, update_BSD, last_update_BSD)
    )
    inverse_norms_BS = jax.lax.rsqrt(changed_BS + tiny) * jax.lax.rsqrt(last_changed_BS + tiny)
    direction_BSD = state_BSD * jax.lax.rsqrt(squared_BS + tiny)[:, :, None]
    counted_BS = jnp.ones_like(squared_BS, bool) if counted_BS is None else counted_BS
    tokens_B = jnp.sum(counted_BS, axis=1, dtype=jnp.float32)
    # The squared norm of a sum of unit vectors counts every pair twice and every vector once.
    sum_BD = jnp.sum(jnp.where(counted_BS[:, :, None], direction_BSD, 0), axis=1)
    pairs_B = jnp.sum(jnp.square(sum_BD), axis=-1) - tokens_B
    return LoopStatistics(
        jnp.sqrt(squared_BS / state_BSD.shape[-1]),
        jnp.sqrt(changed_BS / (squared_BS + tiny)),
        jnp.sum(update_BSD * last_update_BSD, axis=-1) * inverse_norms_BS,
        pairs_B / jnp.maximum(tokens_B * (tokens_B - 1), 1),
    )


def scored_sums(statistics: LoopStatistics, scored_BS: jax.Array) -> dict[str, jax.Array]:
    """Sums over the scored tokens, by metric name; what belongs to a sequence counts for each of its tokens."""
    of_token = {
        "loop/state_norm": statistics.state_norm_BS,
        "loop/residual_rel": statistics.residual_rel_BS,
        "loop/update_cosine": statistics.update_cosine_BS,
        "loop/token_correlation": statistics.token_correlation_B[:, None],
    }
    return {name: jnp.sum(jnp.where(scored_BS, value, 0.0)) for name, value in of_token.items()}
