"""Cross-entropy with all logits in memory: short, obvious, and what the chunked one is tested against."""

import jax
import jax.numpy as jnp

from looplm.ops.precision import at_least_fp32


def cross_entropy(logits_BSV: jax.Array, labels_BS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (-log p(label), whether the label has the largest logit, log-normaliser), all (B, S).

    Ignored labels (negative) give a finite number without meaning.
    """
    logits_BSV = at_least_fp32(logits_BSV)
    # A masked sum instead of a gather: it also works where V is split over devices.
    label_logit_BS = jnp.sum(logits_BSV, axis=-1, where=is_label(logits_BSV, labels_BS))
    normaliser_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    return normaliser_BS - label_logit_BS, label_logit_BS >= jnp.max(logits_BSV, axis=-1), normaliser_BS


def is_label(logits_BSV: jax.Array, labels_BS: jax.Array) -> jax.Array:
    """Tell which entry of the vocabulary is the label, (B, S, V)."""
    vocab = jax.lax.broadcasted_iota(jnp.int32, logits_BSV.shape, 2, out_sharding=_sharding(logits_BSV))
    return vocab == labels_BS[:, :, None]


def _sharding(x: jax.Array) -> jax.sharding.NamedSharding | None:
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
