"""A slice of the sequence at a time, so that only its logits are in memory."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from looplm.sharding.rules import BATCH_AXES, activation_spec, num_shards

Scores = TypeVar("Scores", bound=tuple)


def in_chunks(
    score: Callable[..., Scores],
    arrays: Sequence[jax.Array],
    *,
    fills: Sequence[int],
    logits_per_token: int,
    chunk_logits: int,
    save: bool,
) -> Scores:
    """Score the tokens of a few slices of the sequence, one slice after the other.

    Args:
        score: (slices of the arrays, (B, C, ...) each) -> scores of every token, a NamedTuple of (B, C, ...). It is
            computed again in the backward pass.
        arrays: (B, S, ...).
        fills: what pads each of them where the last slice is longer than the rest.
        logits_per_token: how many logits `score` makes for a token.
        chunk_logits: how many a device may hold.
        save: keep what the backward pass needs where everything is one slice, instead of computing it again.
    """
    batch, length = arrays[0].shape[:2]
    shards = num_shards("context")
    device_length, device_batch = length // shards, batch // num_shards(*BATCH_AXES)
    chunk = max(1, min(device_length, chunk_logits // (device_batch * logits_per_token)))
    chunk = math.ceil(device_length / math.ceil(device_length / chunk))  # as many chunks, of one length: least padding
    if chunk == device_length and save:
        return score(*arrays)
    score = jax.checkpoint(score)
    if chunk == device_length:
        return score(*arrays)

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
        rest = x.shape[3:]
        x = jnp.moveaxis(reshape(x, (len(x), batch, shards, chunk, *rest), "one", "batch", "sequence"), 0, 2)
        x = reshape(x, (batch, shards, x.shape[2] * chunk, *rest), "batch", "sequence")
        return reshape(x[:, :, :device_length], (batch, length, *rest), "batch", "sequence")

    sliced = tuple(chunks_first(x, fill) for x, fill in zip(arrays, fills, strict=True))
    _, scores = jax.lax.scan(lambda _, xs: (None, score(*xs)), None, sliced)
    return jax.tree.map(chunks_back, scores)
