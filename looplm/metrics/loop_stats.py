"""What the loops do to the state: the measures that show a collapsing or idle loop before the loss does.

Kept per token or sequence inside the loops and averaged after them, so that no loop waits for other devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LoopStatistics(NamedTuple):
    """Of one loop, or of all with a leading dim R."""

    state_norm_BS: jax.Array
    """Root mean square of the state over D."""
    residual_rel_BS: jax.Array
    """|s_t - s_{t-1}| / |s_t|: what the loop changed; towards 0 the loop idles."""
    token_correlation_B: jax.Array
    """Mean cosine between the states of different tokens of a sequence; at 1 all tokens are alike: a collapse."""


def loop_statistics(before_BSD: jax.Array, after_BSD: jax.Array) -> LoopStatistics:
    """Compares the states before and after a loop. Float32, without gradient."""
    before_BSD, after_BSD = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (before_BSD, after_BSD))
    length, tiny = after_BSD.shape[1], 1e-30
    squared_BS = jnp.sum(jnp.square(after_BSD), axis=-1)
    changed_BS = jnp.sum(jnp.square(after_BSD - before_BSD), axis=-1)
    direction_BSD = after_BSD * jax.lax.rsqrt(squared_BS + tiny)[:, :, None]
    # The squared norm of a sum of unit vectors counts every pair twice and every vector once.
    pairs_B = jnp.sum(jnp.square(jnp.sum(direction_BSD, axis=1)), axis=-1) - length
    return LoopStatistics(
        jnp.sqrt(squared_BS / after_BSD.shape[-1]),
        jnp.sqrt(changed_BS / (squared_BS + tiny)),
        pairs_B / max(length * (length - 1), 1),
    )


def last_loop(statistics_R: LoopStatistics) -> dict[str, jax.Array]:
    """Means of the last loop, by metric name."""
    return {
        "loop/state_norm": jnp.mean(statistics_R.state_norm_BS[-1]),
        "loop/residual_rel": jnp.mean(statistics_R.residual_rel_BS[-1]),
        "loop/token_correlation": jnp.mean(statistics_R.token_correlation_B[-1]),
    }
