"""Batched generation: one pass over the prompts, then one token at a time for every row until all have ended.

Prompts are padded on the right. Place t of the cache holds position t, and a token at position p sees places 0..p only,
so what padding wrote is overwritten before anybody sees it. No mask of valid places is needed, and rows do not depend
on one another: what is drawn for a row follows from its stream and the position, and experts have no capacity here.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.infer.cache import Policy, new_cache, parse_policy
from looplm.infer.continuation import Written
from looplm.infer.exit_rule import ExitRule
from looplm.model.cache import Cache
from looplm.model.context import Context
from looplm.model.decode import decode
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.ops.attention import cached_mask
from looplm.ops.precision import at_least_fp32

PROMPT_MULTIPLE = 32
"""Prompts are padded to a multiple of this, so that few programs are compiled."""
STATE_PURPOSE, SAMPLE_PURPOSE = 0, 1
"""Folded into keys, so that first states and tokens draw from streams of their own."""


class Sampling(NamedTuple):
    """What is static of a generation; arguments as of `generate`."""

    num_loops: int
    exit: ExitRule | None
    kv: Policy
    max_tokens: int
    greedy: bool
    num_ids: int


class Progress(NamedTuple):
    """What goes from token to token."""

    num_run: jax.Array
    """Tokens drawn so far, the same for all rows."""
    token_B: jax.Array
    """The last token of every row, not yet run through the model."""
    position_B: jax.Array
    """The position of that token."""
    done_B: jax.Array
    """Whether a row has ended; what is drawn for it from then on is dropped."""
    num_written_B: jax.Array
    """How many tokens a row wrote before its end token."""
    written_BM: jax.Array
    loops_BM: jax.Array
    """After how many loops every written token was read, (B, max_tokens) int32."""
    cache: Cache


def generate(
    lm: FunctionalLM,
    params: Params,
    prompts: list[np.ndarray],
    *,
    num_loops: int,
    exit: ExitRule | None = None,
    kv: str | None = None,
    max_tokens: int,
    temperature: float,
    seed: int,
    end_ids: Sequence[int],
    num_ids: int,
) -> list[Written]:
    """Continue every prompt.

    Args:
        params: unsharded.
        prompts: token ids, at least one each.
        num_loops: loops for every token, at most.
        exit: when a token leaves before that; tokens of the prompt run all loops, of which the rule selects one. None:
            no token does.
        kv: which keys and values of earlier tokens a loop sees; see `parse_policy`.
        temperature: 0 takes the likeliest token.
        seed: of all that is drawn.
        end_ids: a row stops after any of these tokens.
        num_ids: ids that may be written; a vocabulary may be padded above what the tokenizer knows.

    Raises UserError for a KV policy that is not known.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    padded = -(-int(lengths_B.max()) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens_BP = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens_BP, prompts, strict=True):
        row[: len(prompt)] = prompt
    policy = parse_policy(kv, num_loops)
    sampling = Sampling(num_loops, exit, policy, max_tokens, greedy=temperature == 0, num_ids=num_ids)
    written_BM, loops_BM, num_written_B = jax.device_get(
        _generate(
            lm,
            sampling,
            params,
            tokens_BP,
            lengths_B,
            temperature or 1.0,
            streams(prompts, seed),
            np.asarray(end_ids, np.int32),
        )
    )
    rows = zip(written_BM, loops_BM, num_written_B, strict=True)
    return [Written(tokens[:count], loops[:count]) for tokens, loops, count in rows]


def streams(prompts: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Return the number of the random stream that every prompt uses, (B,) uint32.

    It depends on the seed, on the prompt and on how many like it came before. So a prompt is answered the same
    whatever stands beside it and in any order, and copies of one prompt differ.
    """
    copies: Counter[bytes] = Counter()
    stream_B = np.zeros(len(prompts), np.uint32)
    for row, prompt in enumerate(prompts):
        ids = np.asarray(prompt, "<i4").tobytes()
        digest = hashlib.sha256(f"{seed} {copies[ids]} ".encode() + ids).digest()
        stream_B[row] = int.from_bytes(digest[:4], "little")
        copies[ids] += 1
    return stream_B


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    lm: FunctionalLM,
    sampling: Sampling,
    params: Params,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    temperature: jax.Array,
    stream_B: jax.Array,
    end_ids_N: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Continue all rows. Returns (the written tokens (B, max_tokens), after how many loops each was read, how many of
    every row come before its end token (B,))."""
    model, dtype = lm.bind(params), compute_dtype(lm.config)
    batch_size, padded = tokens_BP.shape
    room = padded + sampling.max_tokens
    state_key, sample_key = (jax.random.fold_in(jax.random.key(0), p) for p in (STATE_PURPOSE, SAMPLE_PURPOSE))
    halting = sampling.exit.build(model) if sampling.exit else model.halting
    cache = new_cache(lm.config, batch_size=batch_size, length=room, slots=sampling.kv.slots, dtype=dtype)

    def sample(logits_BV: jax.Array, position_B: jax.Array) -> jax.Array:
        """Draw the tokens at these positions."""
        if sampling.greedy:
            return jnp.argmax(logits_BV, axis=-1)

        def draw(logits_V: jax.Array, stream: jax.Array, position: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(sample_key, stream), position)
            return jax.random.categorical(key, logits_V / temperature)

        return jax.vmap(draw)(logits_BV, stream_B, position_B)

    def context(positions_BS: jax.Array) -> Context:
        mask = cached_mask(lm.config, positions_BS, room)
        return Context(positions_BS, mask, key=state_key, sequence_B=stream_B)

    def logits(hidden_B1D: jax.Array) -> jax.Array:
        return at_least_fp32(model.logits(hidden_B1D))[:, 0, : sampling.num_ids]

    def prefill() -> Progress:
        positions_BP = jnp.broadcast_to(jnp.arange(padded), tokens_BP.shape)
        depth, last_B1 = Depth(sampling.num_loops), lengths_B[:, None] - 1
        output = Forward(model, tokens_BP, context(positions_BP), depth, dtype, halting=halting, cache=cache)()
        loops_B = jnp.full_like(lengths_B, sampling.num_loops)
        if halting.left(output.halt) is not None:
            loops_B = jnp.take_along_axis(halting.exits(output.halt), last_B1, axis=1)[:, 0] + 1
        zeros_B, zeros_BM = jnp.zeros_like(lengths_B), jnp.zeros((batch_size, sampling.max_tokens), jnp.int32)
        start = Progress(jnp.int32(0), zeros_B, lengths_B, zeros_B != 0, zeros_B, zeros_BM, zeros_BM, output.cache)
        hidden_B1D = jnp.take_along_axis(output.read[0], last_B1[:, :, None], axis=1)
        return advance(start, logits(hidden_B1D), loops_B)

    def step(progress: Progress) -> Progress:
        one = decode(
            model,
            progress.token_B[:, None],
            context(progress.position_B[:, None]),
            sampling.num_loops,
            dtype=dtype,
            halting=halting,
            cache=progress.cache,
            exact=sampling.kv.exact,
        )
        moved = progress._replace(cache=one.cache, position_B=progress.position_B + 1)
        return advance(moved, logits(one.hidden_B1D), one.exit_B1[:, 0] + 1)

    def advance(progress: Progress, logits_BV: jax.Array, loops_B: jax.Array) -> Progress:
        token_B = sample(logits_BV, progress.position_B)
        done_B = progress.done_B | jnp.any(token_B[:, None] == end_ids_N, axis=1)
        return progress._replace(
            num_run=progress.num_run + 1,
            token_B=token_B,
            done_B=done_B,
            num_written_B=progress.num_written_B + ~done_B,
            written_BM=progress.written_BM.at[:, progress.num_run].set(token_B),
            loops_BM=progress.loops_BM.at[:, progress.num_run].set(loops_B),
        )

    last = jax.lax.while_loop(lambda p: (p.num_run < sampling.max_tokens) & ~jnp.all(p.done_B), step, prefill())
    return last.written_BM, last.loops_BM, last.num_written_B
