"""Divergence of two predictions, with a gradient by hand that keeps neither's probabilities."""

from functools import partial

import jax
import jax.numpy as jnp

from looplm.ops.precision import at_least_fp32


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def divergence(logits_BSV: jax.Array, target_BSV: jax.Array, temperature: float) -> jax.Array:
    """KL(softmax(target / T) || softmax(logits / T)) in nats, times T^2: (B, S), float32 at least.

    The target gets no gradient. That of the logits is T (softmax(logits / T) - softmax(target / T)).
    """
    return _forward(logits_BSV, target_BSV, temperature)[0]


def _forward(
    logits_BSV: jax.Array, target_BSV: jax.Array, temperature: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    ours_BSV, theirs_BSV = at_least_fp32(logits_BSV) / temperature, at_least_fp32(target_BSV) / temperature
    normaliser_BS, of_target_BS = (jax.nn.logsumexp(x, axis=-1) for x in (ours_BSV, theirs_BSV))
    share_BSV = jnp.exp(theirs_BSV - of_target_BS[:, :, None])
    # Where a token has no share in the target, its logits may be as far apart as they like: 0 times that is 0.
    apart_BS = jnp.sum(share_BSV * jnp.where(share_BSV > 0, theirs_BSV - ours_BSV, 0), axis=-1)
    value_BS = temperature**2 * (apart_BS + normaliser_BS - of_target_BS)
    return value_BS, (logits_BSV, target_BSV, normaliser_BS, of_target_BS)


def _backward(temperature: float, saved: tuple[jax.Array, ...], cotangent_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_BSV, target_BSV, normaliser_BS, of_target_BS = saved
    ours_BSV = jnp.exp(at_least_fp32(logits_BSV) / temperature - normaliser_BS[:, :, None])
    theirs_BSV = jnp.exp(at_least_fp32(target_BSV) / temperature - of_target_BS[:, :, None])
    gradient_BSV = temperature * (ours_BSV - theirs_BSV) * cotangent_BS[:, :, None]
    return gradient_BSV.astype(logits_BSV.dtype), jnp.zeros_like(target_BSV)


divergence.defvjp(_forward, _backward)
