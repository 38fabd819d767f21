"""Cross-entropy of a slice of the sequence at a time, whose logits are made again in the backward pass or saved."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.ops.cross_entropy.chunks import in_chunks
from looplm.ops.cross_entropy.divergence import divergence
from looplm.ops.cross_entropy.head import Head
from looplm.ops.cross_entropy.label import cross_entropy
from looplm.sharding.collective import Whole

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


class DistilledScores(NamedTuple):
    nll_BS: jax.Array
    """As of `TokenScores`, and so are the next two."""
    correct_BS: jax.Array
    z_BS: jax.Array
    divergence_BS: jax.Array
    """KL(target || prediction) in nats, float32, times temperature^2; zero where the label is ignored."""


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
    head = Head(head_VD, bias_V, logit_softcap)
    return in_chunks(
        lambda hidden_BCD, labels_BC: _scores(head(hidden_BCD), labels_BC),
        (hidden_BSD, labels_BS),
        fills=(0, IGNORED),
        logits_per_token=head.num_logits,
        chunk_logits=chunk_logits,
        save=save_logits,
    )


def linear_distillation(
    hidden_BSD: jax.Array,
    head: Head,
    labels_BS: jax.Array,
    target_BSE: jax.Array,
    target_head: Head,
    *,
    temperature: float,
    chunk_logits: int = CHUNK_LOGITS,
    save_logits: bool = False,
) -> DistilledScores:
    """Score labels, and how far the prediction is from a target's, with neither's (B, S, V) in memory.

        KL = sum_v q_v (log q_v - log p_v)      q, p: softmax of the logits of target and prediction / temperature

    The gradient is that of the prediction alone. Temperature and its square as in arXiv 1503.02531.

    Args:
        hidden_BSD, labels_BS, chunk_logits, save_logits: as of `linear_cross_entropy`; both logits count.
        target_BSE, target_head: what the target's head reads, and that head, over the same vocabulary.
    """
    frozen = target_head.frozen()

    def score(hidden_BCD: jax.Array, labels_BC: jax.Array, target_BCE: jax.Array) -> DistilledScores:
        return _distilled(head(hidden_BCD), frozen(target_BCE), labels_BC, temperature)

    return in_chunks(
        score,
        (hidden_BSD, labels_BS, jax.lax.stop_gradient(target_BSE)),
        fills=(0, IGNORED, 0),
        logits_per_token=head.num_logits + target_head.num_logits,
        chunk_logits=chunk_logits,
        save=save_logits,
    )


def linear_self_distillation(
    hidden_BSD: jax.Array,
    last_BSD: jax.Array,
    head: Head,
    labels_BS: jax.Array,
    *,
    temperature: float,
    chunk_logits: int = CHUNK_LOGITS,
    save_logits: bool = False,
) -> tuple[DistilledScores, TokenScores]:
    """Score labels under two predictions of one head, and how far the first is from the second, which has no gradient
    of that. The logits of each are made once, and neither's (B, S, V) is in memory.

    Args:
        hidden_BSD, last_BSD: what the head reads for the first and for the second, both of one type.
        labels_BS, temperature, chunk_logits, save_logits: as of `linear_distillation`.

    Returns (scores of the first, scores of the second).
    """

    def score(hidden_BCD: jax.Array, last_BCD: jax.Array, labels_BC: jax.Array) -> tuple[DistilledScores, TokenScores]:
        last_BCV = head(last_BCD)
        return _distilled(head(hidden_BCD), last_BCV, labels_BC, temperature), _scores(last_BCV, labels_BC)

    return in_chunks(
        score,
        (hidden_BSD, last_BSD, labels_BS),
        fills=(0, 0, IGNORED),
        logits_per_token=2 * head.num_logits,
        chunk_logits=chunk_logits,
        save=save_logits,
    )


def _distilled(
    logits_BCV: jax.Array, target_BCV: jax.Array, labels_BC: jax.Array, temperature: float
) -> DistilledScores:
    divergence_BC = divergence(logits_BCV, jax.lax.stop_gradient(target_BCV), temperature)
    return DistilledScores(*_scores(logits_BCV, labels_BC), jnp.where(labels_BC != IGNORED, divergence_BC, 0))


def _scores(logits_BCV: jax.Array, labels_BC: jax.Array) -> TokenScores:
    nll_BC, correct_BC, normaliser_BC = cross_entropy(logits_BCV, labels_BC)
    scored_BC = labels_BC != IGNORED
    return TokenScores(
        jnp.where(scored_BC, nll_BC, 0),
        (scored_BC & correct_BC).astype(nll_BC.dtype),
        jnp.where(scored_BC, jnp.square(normaliser_BC), 0),
    )
