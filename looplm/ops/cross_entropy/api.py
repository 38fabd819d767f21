"""Cross-entropy of a slice of the sequence at a time, whose logits are made again in the backward pass or saved."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.ops.cross_entropy.label import cross_entropy
from looplm.ops.cross_entropy.product import head_product
from looplm.ops.precision import at_least_fp32
from looplm.ops.softcap import softcap
from looplm.sharding.collective import Whole, per_channel
from looplm.sharding.rules import BATCH_AXES, activation_spec, num_shards

IGNORED = -100
"""A label that is not scored."""

CHUNK_LOGITS = 2**25
"""Logits a device holds at once: 128 MiB in float32; large enough to keep matrix units busy."""


class TokenScores(NamedTuple):
    nll_BS: jax.Array
    """-log p(label) in nats, float32; zero where the label is ignored."""
    correct_BS: jax.Array
    """1 where the label had the largest logit, else 0; float32."""
    z_BS: jax.Array
    """Squared log-normaliser of the logits; zero where the label is ignored."""


def linear_cross_entropy(
    hidden_BSD: jax.Array,
    head_VD: jax.Array | Whole,
    labels_BS: jax.Array,
    *,
    bias_V: jax.Array | Whole | None = None,
    logit_softcap: float | None = None,
    chunk_logits: int = CHUNK_LOGITS,
    save_logits: bool = False,
) -> TokenScores:
    """Score labels under softmax(hidden head^T + bias) without holding (B, S, V).

    Args:
        hidden_BSD: any float type; the product is taken in it and continued in float32.
        head_VD: the head, cast to hidden's type.
        labels_BS: int32, IGNORED where nothing is to be scored.
        bias_V: added to the logits, in float32 at least.
        logit_softcap: see `ops.softcap`.
        chunk_logits: how many logits a device may hold.
        save_logits: save the logits for the backward pass where they are one chunk, instead of making them again.
    """
    batch, length, _ = hidden_BSD.shape
    shards = num_shards("context")
    device_length, device_batch = length // shards, batch // num_shards(*BATCH_AXES)
    chunk = max(1, min(device_length, chunk_logits // (device_batch * head_VD.shape[0])))
    chunk = math.ceil(device_length / math.ceil(device_length / chunk))  # as many chunks, of one length: least padding

    def score(hidden_BCD: jax.Array, labels_BC: jax.Array) -> TokenScores:
        logits_BCV = head_product(hidden_BCD, head_VD.astype(hidden_BCD.dtype))
        if bias_V is not None:
            logits_BCV = at_least_fp32(logits_BCV)
            logits_BCV = per_channel(jnp.add, [bias_V.astype(logits_BCV.dtype)], logits_BCV)
        nll_BC, correct_BC, normaliser_BC = cross_entropy(softcap(logits_BCV, logit_softcap), labels_BC)
        scored_BC = labels_BC != IGNORED
        return TokenScores(
            jnp.where(scored_BC, nll_BC, 0),
            (scored_BC & correct_BC).astype(nll_BC.dtype),
            jnp.where(scored_BC, jnp.square(normaliser_BC), 0),
        )

    if chunk == device_length and save_logits:
        return score(hidden_BSD, labels_BS)
    score = jax.checkpoint(score)
    if chunk == device_length:
        return score(hidden_BSD, labels_BS)

    def reshape(x: jax.Array, shape: tuple[int, ...], *axes: str) -> jax.Array:
        # The layout is given: JAX's own guess is wrong or refused where the context axis has size 1.
        return jnp.reshape(x, shape, out_sharding=activation_spec(*axes, *["one"] * (len(shape) - len(axes))))

    def chunks_first(x: jax.Array, fill: int) -> jax.Array:
        """(chunks, B, shards * chunk, ...): every device cuts its own part of the sequence."""
        x = reshape(x, (batch, shards, device_length, *x.shape[2:]), "batch", "sequence")
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -device_length % chunk)] + [(0, 0)] * (x.ndim - 3), constant_values=fill)
        x = reshape(x, (batch, shards, x.shape[2] // chunk, chunk, *x.shape[3:]), "batch", "sequence")
        x = jnp.moveaxis(x, 2, 0)
        return reshape(x, (*x.shape[:2], shards * chunk, *x.shape[4:]), "one", "batch", "sequence")

    def chunks_back(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(reshape(x, (len(x), batch, shards, chunk), "one", "batch", "sequence"), 0, 2)
        x = reshape(x, (batch, shards, x.shape[2] * chunk), "batch", "sequence")
        return reshape(x[:, :, :device_length], (batch, length), "batch", "sequence")

    _, scores = jax.lax.scan(
        lambda _, xs: (None, score(*xs)), None, (chunks_first(hidden_BSD, 0), chunks_first(labels_BS, IGNORED))
    )
    return TokenScores(*map(chunks_back, scores))
