"""Decoding: one more token for every row. The loops run until all tokens have left."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from looplm.model.cache import Cache
from looplm.model.context import Context
from looplm.model.halting import Halting
from looplm.model.lm import LoopLM
from looplm.model.loop import run_until
from looplm.model.output import Carry
from looplm.ops.attention import prepare


class Decoded(NamedTuple):
    """What the pass over one token a row gives."""

    hidden_B1D: jax.Array
    """What the head reads."""
    cache: Cache
    exit_B1: jax.Array
    """Number of the last loop of every token, from 0."""


def decode(
    model: LoopLM,
    tokens_B1: jax.Array,
    context: Context,
    most_loops: int,
    *,
    dtype: jax.typing.DTypeLike,
    halting: Halting,
    cache: Cache,
    exact: bool = False,
) -> Decoded:
    """Run one token a row, in at most `most_loops` loops; loops after the last token has left do not run.

    A token that left before the others writes no more keys and values. Those of its last loop then stand for the loops
    that it did not run, so that a row does not depend on the other rows of its batch.

    exact: run all loops for all tokens, which costs as much as no exits; leaving only selects what is read.
    """
    context = replace(context, mask=prepare(context.mask, 1, dtype))
    inputs, entered = model.enter(tokens_B1, context, dtype, cache.prelude)
    context = replace(context, predict=model.predictor(context, entered, cache.coda))
    state, read = model.core.init_state(inputs, context), model.core.read
    body = model.body(context, halting, leaving=not exact)

    def all_left(carry: Carry) -> jax.Array:
        left_B1 = halting.left(carry.halt)
        return jnp.zeros(1, bool) if exact or left_B1 is None else left_B1

    first = Carry(state, halting.init(read(state)), cache.block)
    last, _ = run_until(body.step, body.parameters, first, inputs, most_loops, all_left, per_loop=body.per_loop)
    block, exit_B1 = last.cache, jnp.full_like(tokens_B1, most_loops - 1)
    if halting.left(last.halt) is not None:
        exit_B1 = halting.exits(last.halt)
        if block is not None and not exact:
            block = block.fill(exit_B1, context.positions_BS, most_loops)
    h_BSD = halting.finish(last.halt, read(last.state))
    hidden_B1D, coda, _ = model.leave(h_BSD, context, entered, cache.coda)
    return Decoded(hidden_B1D, Cache(entered.cache, block, coda), exit_B1)
