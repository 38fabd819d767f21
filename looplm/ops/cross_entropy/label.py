"""Cross-entropy of logits, with a gradient by hand that reads them once."""

import jax
import jax.numpy as jnp

from looplm.ops.cross_entropy import reference
from looplm.ops.precision import at_least_fp32

Scores = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def cross_entropy(logits_BSV: jax.Array, labels_BS: jax.Array) -> Scores:
    """Score labels; arguments and results as of `reference.cross_entropy`, float32 at least."""
    return reference.cross_entropy(logits_BSV, labels_BS)


def _forward(logits_BSV: jax.Array, labels_BS: jax.Array) -> tuple[Scores, tuple[jax.Array, ...]]:
    nll_BS, correct_BS, normaliser_BS = reference.cross_entropy(logits_BSV, labels_BS)
    return (nll_BS, correct_BS, normaliser_BS), (logits_BSV, labels_BS, normaliser_BS)


def _backward(saved: tuple[jax.Array, ...], cotangents: Scores) -> tuple[jax.Array, None]:
    logits_BSV, labels_BS, normaliser_BS = saved
    nll_BS, _, of_normaliser_BS = cotangents
    probability_BSV = jnp.exp(at_least_fp32(logits_BSV) - normaliser_BS[:, :, None])
    gradient_BSV = probability_BSV * (nll_BS + of_normaliser_BS)[:, :, None]
    gradient_BSV -= jnp.where(reference.is_label(logits_BSV, labels_BS), nll_BS[:, :, None], 0)
    # Two products read it: without the barrier each would make it anew.
    return jax.lax.optimization_barrier(gradient_BSV.astype(logits_BSV.dtype)), None


cross_entropy.defvjp(_forward, _backward)
