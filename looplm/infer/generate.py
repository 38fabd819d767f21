"""Batched generation: one prefill, then one token at a time for every sequence until all have ended.

Prompts are padded on the right. Slot t of the cache holds position t, and a token at position p sees slots 0..p only,
so what padding wrote is overwritten before anybody sees it: no validity mask, and rows do not depend on one another.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.infer.cache import new_cache
from looplm.model.context import Context
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.model.lm import Cache
from looplm.model.loop import Depth
from looplm.ops.attention import cached_mask
from looplm.ops.precision import at_least_fp32

PROMPT_MULTIPLE = 32
"""Prompts are padded to a multiple of this, so that few programs are compiled."""


class Sampling(NamedTuple):
    num_loops: int
    exit_threshold: float | None
    max_tokens: int
    greedy: bool
    num_ids: int


class Progress(NamedTuple):
    """State of the decoding loop."""

    num_written: jax.Array
    """Tokens written so far, the same for all rows."""
    token_B: jax.Array
    """The last token of every row, not yet run through the model."""
    position_B: jax.Array
    """Its position."""
    done_B: jax.Array
    written_BM: jax.Array
    cache: Cache


def generate(
    lm: FunctionalLM,
    params: Params,
    prompts: list[np.ndarray],
    *,
    num_loops: int,
    exit_threshold: float | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    end_id: int,
    num_ids: int,
) -> list[np.ndarray]:
    """Continues every prompt.

    Args:
        params: unsharded.
        prompts: token ids, at least one each.
        num_loops: loops for every token.
        exit_threshold: read a token at the loop where its cumulative exit probability reaches this; None: at the last.
        temperature: 0 takes the likeliest token.
        end_id: a row stops after this token.
        num_ids: ids that may be written; a vocabulary may be padded above what the tokenizer knows.

    Returns:
        The new tokens of every row, without the end token.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    padded = -(-int(lengths_B.max()) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens_BP = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens_BP, prompts, strict=True):
        row[: len(prompt)] = prompt
    sampling = Sampling(num_loops, exit_threshold, max_tokens, greedy=temperature == 0, num_ids=num_ids)
    written_BM = np.asarray(
        _generate(lm, sampling, params, tokens_BP, lengths_B, temperature or 1.0, jax.random.key(seed), end_id)
    )
    return [row[: np.argmax(row == end_id)] if end_id in row else row for row in written_BM]


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    lm: FunctionalLM,
    sampling: Sampling,
    params: Params,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
    end_id: jax.Array,
) -> jax.Array:
    """Returns the written tokens (B, max_tokens); rows that ended early are filled up with the end token."""
    model, dtype = lm.bind(params), compute_dtype(lm.config)
    batch_size, padded = tokens_BP.shape
    room = padded + sampling.max_tokens
    cache = new_cache(lm.config, batch_size=batch_size, length=room, num_loops=sampling.num_loops, dtype=dtype)

    def sample(logits_BV: jax.Array, count: jax.Array) -> jax.Array:
        if sampling.greedy:
            return jnp.argmax(logits_BV, axis=-1)
        return jax.random.categorical(jax.random.fold_in(key, count), logits_BV / temperature)

    def run(tokens_BS: jax.Array, positions_BS: jax.Array, last_B: jax.Array, cache: Cache) -> tuple:
        """Logits after token `last_B` of every row, and the cache."""
        context = Context(
            positions_BS,
            cached_mask(lm.config, positions_BS, room),
            key=key,
            sequence_B=jnp.arange(batch_size),
        )
        output = model(
            tokens_BS, context, Depth(sampling.num_loops), dtype=dtype, exit_threshold=sampling.exit_threshold,
            cache=cache,
        )  # fmt: skip
        last_BSD = jnp.take_along_axis(output.hidden_RBSD[-1], last_B[:, None, None], axis=1)
        return at_least_fp32(model.logits(last_BSD))[:, 0, : sampling.num_ids], output.cache

    def step(progress: Progress) -> Progress:
        logits_BV, cache = run(
            progress.token_B[:, None], progress.position_B[:, None], jnp.zeros_like(progress.position_B), progress.cache
        )
        return advance(progress._replace(cache=cache, position_B=progress.position_B + 1), logits_BV)

    def advance(progress: Progress, logits_BV: jax.Array) -> Progress:
        token_B = jnp.where(progress.done_B, end_id, sample(logits_BV, progress.num_written))
        return progress._replace(
            num_written=progress.num_written + 1,
            token_B=token_B,
            done_B=progress.done_B | (token_B == end_id),
            written_BM=progress.written_BM.at[:, progress.num_written].set(token_B),
        )

    positions_BP = jnp.broadcast_to(jnp.arange(padded), tokens_BP.shape)
    logits_BV, cache = run(tokens_BP, positions_BP, lengths_B - 1, cache)
    written_BM = jnp.full((batch_size, sampling.max_tokens), end_id, jnp.int32)
    start = Progress(jnp.int32(0), lengths_B, lengths_B, jnp.zeros(batch_size, bool), written_BM, cache)
    last = jax.lax.while_loop(
        lambda p: (p.num_written < sampling.max_tokens) & ~jnp.all(p.done_B), step, advance(start, logits_BV)
    )
    return last.written_BM
