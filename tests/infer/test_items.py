"""`Engine.advance` with items of all rows, positions and loops at once, against passes over whole sequences."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import looplm
from looplm.infer.cache import new_cache, parse_policy
from looplm.infer.items import STATE_PURPOSE, Engine
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.ops.attention import self_mask

GOLDEN = Path(__file__).parents[1] / "golden"
R, B, S = 4, 2, 7


@pytest.mark.parametrize("name", ["ouro", "huginn", pytest.param("parcae", marks=pytest.mark.slow)])
def test_a_diagonal_of_positions_and_loops_gives_the_logits_of_a_whole_pass(name):
    """Position p of both rows runs loop t - p in tick t, one row a tick later than the other."""
    lm = looplm.load(GOLDEN / f"{name}_a")
    vocab, stream_B = lm.model.vocab_size, jnp.array([5, 9], jnp.uint32)
    tokens_BS = jnp.asarray(np.random.default_rng(0).integers(0, vocab, (B, S)), jnp.int32)
    row_N, position_N = jnp.repeat(jnp.arange(B), S), jnp.tile(jnp.arange(S), B)

    @jax.jit
    def by_items(params):
        model = lm.functional.bind(params)
        engine = Engine(model, model.halting, R, jnp.float32, S + 2, vocab, stream_B)
        cache = new_cache(lm.model, batch_size=B, length=S + 2, policy=parse_policy("each", R), dtype=jnp.float32)
        everybody_N1 = jnp.ones((B * S, 1), bool)
        items, cache = engine.enter(cache, tokens_BS.reshape(-1, 1), position_N[:, None], everybody_N1, row_N)

        def tick(at, t):
            items, cache = at
            due_N = t - position_N - row_N
            runs_N = (due_N >= 0) & (due_N < R)
            moved, cache = engine.advance(cache, items._replace(live_NS=runs_N[:, None]))
            kept = jax.tree.map(
                lambda new, old: jnp.where(runs_N.reshape(-1, *(1,) * (new.ndim - 1)), new, old), moved, items
            )
            return (kept, cache), jnp.sum(runs_N)

        (items, cache), counts_T = jax.lax.scan(tick, (items, cache), jnp.arange(S + R))
        return engine.leave(cache, items._replace(live_NS=everybody_N1))[0], items.number_N, counts_T

    logits_N1V, number_N, counts_T = by_items(lm.params)
    np.testing.assert_array_equal(number_N, R)
    assert counts_T.max() > R, "items of several rows and loops run together"
    assert counts_T.sum() == B * S * R

    key = jax.random.fold_in(jax.random.key(0), STATE_PURPOSE)
    context = Context(
        jnp.broadcast_to(jnp.arange(S), (B, S)), self_mask(lm.model, 0 * tokens_BS), key=key, sequence_B=stream_B
    )

    @jax.jit
    def whole(params):
        model = lm.functional.bind(params)
        return model.logits(Forward(model, tokens_BS, context, Depth(R), jnp.float32)().read[0])

    np.testing.assert_allclose(logits_N1V.reshape(B, S, vocab), whole(lm.params), atol=5e-5)
