"""What is read of the logits of every loop beside the scores: losses at other temperatures, and what exit rules ask."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.model.lm import LoopLM
from looplm.ops.cross_entropy import IGNORED
from looplm.ops.cross_entropy.api import CHUNK_LOGITS
from looplm.ops.cross_entropy.chunks import in_chunks
from looplm.ops.cross_entropy.head import Head
from looplm.ops.cross_entropy.label import cross_entropy
from looplm.ops.precision import at_least_fp32
from looplm.sharding.rules import activation_spec

INVERSE_STEP = 1 / 8
INVERSE_TEMPERATURES = INVERSE_STEP * np.arange(1, 17)
"""Inverse temperatures at which losses are measured, (K,): multiples of one, so that one exponential serves all."""

IN_CACHE = 2**18
"""Logits that a CPU goes through sixteen times at once: with more, each time comes from memory."""


class LoopReading(NamedTuple):
    """Of a loop; leaves (B, S), or (R, B, S) of all loops."""

    nll: jax.Array
    """-log p(label), nats, float32; 0 where the label is ignored."""
    correct: jax.Array
    tempered: jax.Array | None = None
    """(B, S, K): the loss at every one of `INVERSE_TEMPERATURES`."""
    best: jax.Array | None = None
    """The likeliest successor, int32."""
    entropy: jax.Array | None = None
    """Of the prediction, nats."""
    confidence: jax.Array | None = None
    """Probability of the likeliest successor."""
    divergence: jax.Array | None = None
    """KL(prediction || that of the loop before), nats; meaningless after the first loop."""


def read_one(model: LoopLM, hidden_BSD: jax.Array, labels_BS: jax.Array, *, tempered: bool) -> LoopReading:
    """Score a loop, of what the head reads."""

    def score(hidden_BCD: jax.Array, labels_BC: jax.Array) -> LoopReading:
        return _scored(_logits(model, hidden_BCD), labels_BC, tempered)

    return sliced(score, model, hidden_BSD, labels_BS)


def read_all(model: LoopLM, hidden_RBSD: jax.Array, labels_BS: jax.Array, *, tempered: bool) -> LoopReading:
    """Score all loops, with what exit rules ask of their predictions."""

    def score(hidden_BCRD: jax.Array, labels_BC: jax.Array) -> LoopReading:
        def loop(before_BCV: jax.Array, hidden_BCD: jax.Array) -> tuple[jax.Array, LoopReading]:
            logits_BCV = at_least_fp32(_logits(model, hidden_BCD))
            log_p_BCV = jax.nn.log_softmax(logits_BCV)
            p_BCV = jnp.exp(log_p_BCV)
            reading = _scored(logits_BCV, labels_BC, tempered)._replace(
                best=_first_of_the_largest(logits_BCV),
                entropy=-jnp.sum(p_BCV * log_p_BCV, axis=-1),
                confidence=jnp.exp(jnp.max(log_p_BCV, axis=-1)),
                divergence=jnp.sum(p_BCV * (log_p_BCV - before_BCV), axis=-1),
            )
            return log_p_BCV, reading

        shape = (*labels_BC.shape, model.head_VD.shape[0])
        zeros_BCV = jnp.zeros(shape, jnp.float32, out_sharding=activation_spec("batch", "sequence", "vocab"))
        _, readings = jax.lax.scan(loop, zeros_BCV.astype(_wide(hidden_BCRD)), jnp.moveaxis(hidden_BCRD, 2, 0))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), readings)

    readings = sliced(score, model, jnp.moveaxis(hidden_RBSD, 0, 2), labels_BS)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 0), readings)


def sliced(score: Callable[..., Any], model: LoopLM, *arrays_and_labels: jax.Array, heads: int = 1) -> Any:
    """Call score(slices of arrays and labels) with few tokens at a time.

    heads: how often the logits of a token are held.
    """
    most = IN_CACHE if jax.default_backend() == "cpu" else CHUNK_LOGITS
    fills = [0] * (len(arrays_and_labels) - 1) + [IGNORED]
    width = head_of(model).num_logits * heads
    return in_chunks(score, arrays_and_labels, fills=fills, logits_per_token=width, chunk_logits=most, save=True)


def head_of(model: LoopLM) -> Head:
    """Return the model's head."""
    return Head(model.head_VD, model.head_bias_V, model.config.logit_softcap)


def _logits(model: LoopLM, hidden_BCD: jax.Array) -> jax.Array:
    return head_of(model)(hidden_BCD)


def _wide(x: jax.Array) -> jnp.dtype:
    return jax.eval_shape(at_least_fp32, x).dtype


def _scored(logits_BCV: jax.Array, labels_BC: jax.Array, tempered: bool) -> LoopReading:
    nll_BC, correct_BC, normaliser_BC = cross_entropy(logits_BCV, labels_BC)
    scored_BC = labels_BC != IGNORED
    reading = LoopReading(jnp.where(scored_BC, nll_BC, 0), scored_BC & correct_BC)
    if not tempered:
        return reading
    label_BC = normaliser_BC - nll_BC
    tempered_BCK = _tempered(at_least_fp32(logits_BCV), label_BC)
    return reading._replace(tempered=jnp.where(scored_BC[..., None], tempered_BCK, 0))


def _tempered(logits_BCV: jax.Array, label_logit_BC: jax.Array) -> jax.Array:
    """Return -log p(label) at every one of `INVERSE_TEMPERATURES`, (B, C, K)."""
    largest_BC = jnp.max(logits_BCV, axis=-1)
    base_BCV = jnp.exp((logits_BCV - largest_BC[..., None]) * INVERSE_STEP)

    def power(power_BCV: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return power_BCV * base_BCV, jnp.sum(power_BCV, axis=-1)

    _, sums_KBC = jax.lax.scan(power, base_BCV, None, length=len(INVERSE_TEMPERATURES))
    inverse_K = jnp.asarray(INVERSE_TEMPERATURES, logits_BCV.dtype)
    return jnp.log(jnp.moveaxis(sums_KBC, 0, -1)) + inverse_K * (largest_BC - label_logit_BC)[..., None]


def _first_of_the_largest(logits_BCV: jax.Array) -> jax.Array:
    """Like argmax, which is not vectorised on a CPU."""
    vocab = jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2, out_sharding=_sharding(logits_BCV))
    largest_BC1 = jnp.max(logits_BCV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BCV >= largest_BC1, vocab, logits_BCV.shape[-1]), axis=-1)


def _sharding(x: jax.Array) -> jax.sharding.NamedSharding | None:
    return None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
