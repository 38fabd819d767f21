"""From logits to a token. What is drawn depends on the stream of the sequence and on the position alone, so every
scheduler, draft and batch draws the same."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from looplm.infer.items import SAMPLE_PURPOSE

LEAST = -1e30
"""Logit of a token that may not be drawn."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; what is None is left out, and no program holds it."""

    temperature: float | None = None
    """None takes the likeliest token."""
    top_k: int | None = field(default=None, metadata={"static": True})
    """Only the so many likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability (arXiv 1904.09751)."""
    min_p: float | None = None
    """Only tokens with this share of the likeliest one's probability (arXiv 2407.01082)."""
    repetition_penalty: float | None = None
    """What the logits of tokens that the sequence holds are divided by, or multiplied with where they are negative
    (arXiv 1909.05858)."""

    def draw(
        self,
        logits_NV: jax.Array,
        stream_N: jax.Array,
        position_N: jax.Array,
        tokens_NT: jax.Array,
    ) -> jax.Array:
        """Draw the tokens at these positions, (N,) int32.

        Args:
            logits_NV: of the ids that may be drawn, float32.
            stream_N: random stream of each sequence.
            position_N: where the token goes.
            tokens_NT: the sequences; only what is before the position is looked at.
        """
        if self.repetition_penalty is not None:
            logits_NV = _penalised(logits_NV, position_N, tokens_NT, self.repetition_penalty)
        if self.temperature is None:
            return likeliest(logits_NV)
        logits_NV = self._filtered(logits_NV / self.temperature)
        purpose = jax.random.fold_in(jax.random.key(0), SAMPLE_PURPOSE)

        def noise(stream: jax.Array, position: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(purpose, stream), position)
            return jax.random.gumbel(key, logits_NV.shape[-1:], logits_NV.dtype)

        # The likeliest after Gumbel noise is a draw. No logit changes the noise: a draft that agrees draws the same.
        return likeliest(logits_NV + jax.vmap(noise)(stream_N, position_N))

    def _filtered(self, logits_NV: jax.Array) -> jax.Array:
        if self.top_k is not None and self.top_k < logits_NV.shape[-1]:
            least_N1 = jax.lax.top_k(logits_NV, self.top_k)[0][:, -1:]
            logits_NV = jnp.where(logits_NV < least_N1, LEAST, logits_NV)
        if self.top_p is not None:
            sorted_NV = -jnp.sort(-logits_NV, axis=-1)
            p_NV = jax.nn.softmax(sorted_NV)
            # A token stays where those before it do not have the probability yet; the first always does.
            stays_NV = jnp.cumsum(p_NV, axis=-1) - p_NV < self.top_p
            least_N1 = jnp.min(jnp.where(stays_NV, sorted_NV, jnp.inf), axis=-1, keepdims=True)
            logits_NV = jnp.where(logits_NV < least_N1, LEAST, logits_NV)
        if self.min_p is not None:
            least_N1 = jnp.max(logits_NV, axis=-1, keepdims=True) + jnp.log(self.min_p)
            logits_NV = jnp.where(logits_NV < least_N1, LEAST, logits_NV)
        return logits_NV


def likeliest(logits_NV: jax.Array) -> jax.Array:
    """Return the first of the largest logits, (N,) int32; on a CPU several times faster than `argmax`, which is not
    vectorised there."""
    most_N1, V = jnp.max(logits_NV, axis=-1, keepdims=True), logits_NV.shape[-1]
    places_NV = jnp.where(logits_NV == most_N1, jnp.arange(V, dtype=jnp.int32), V - 1)
    return jnp.min(places_NV, axis=-1)


def _penalised(logits_NV: jax.Array, position_N: jax.Array, tokens_NT: jax.Array, penalty: float) -> jax.Array:
    N, V = logits_NV.shape
    before_NT = jnp.arange(tokens_NT.shape[1]) < position_N[:, None]
    tokens_NT = jnp.where(before_NT, tokens_NT, V)
    held_NV = jnp.zeros((N, V), bool).at[jnp.arange(N)[:, None], tokens_NT].set(True, mode="drop")
    return jnp.where(held_NV, jnp.where(logits_NV > 0, logits_NV / penalty, logits_NV * penalty), logits_NV)
