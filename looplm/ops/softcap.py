"""A smooth bound on logits (Gemma 2, arXiv 2408.00118)."""

import jax
import jax.numpy as jnp

from looplm.ops.precision import at_least_fp32


def softcap(logits: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(logits / cap), in float32; None returns them as they are."""
    return logits if cap is None else (cap * jnp.tanh(at_least_fp32(logits) / cap)).astype(logits.dtype)
