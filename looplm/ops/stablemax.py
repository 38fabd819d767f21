"""Stablemax in place of softmax: probabilities from logits without an exponential (arXiv 2501.04697)."""

import jax
import jax.numpy as jnp


def stablemax_logits(logits: jax.Array) -> jax.Array:
    """Return the logits whose softmax is the stablemax of the given ones, in their type.

    Stablemax is s(x) / sum of s, with s(x) = x + 1 above 0 and 1 / (1 - x) below; log s(x) = sign(x) log(1 + |x|).
    """
    return jnp.sign(logits) * jnp.log1p(jnp.abs(logits))
