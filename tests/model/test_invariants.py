"""What holds whatever a model is made of: one program for all depths, no gradient of detached loops, identities."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from looplm.config.schema import AddInjection, Model, MoE, OwnHalting, VectorConditioning
from looplm.infer.cache import new_cache, parse_policy
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.model.halting import Halting, Never
from looplm.model.layers import parameter
from looplm.model.output import Output
from looplm.model.report import Reporting
from looplm.ops.attention import cached_mask, self_mask

WINDOW, ROWS = 3, 5
"""Loops of the window, and loops that have parameters of their own."""
SMALL = dict(prelude_layers=0, block_layers=1, coda_layers=0, injection=AddInjection())


class Blended(OwnHalting):
    """What is read is a sum over all loops, with a learned weight for each, or one for all."""

    loops: int | None = None

    def build(self, model: Model, *, rngs: nnx.Rngs) -> Halting:
        return Blend(self.loops, rngs=rngs)


class Blend(Never):
    def __init__(self, loops: int | None, *, rngs: nnx.Rngs):
        ones = nnx.initializers.ones
        self.weight = parameter(rngs, ones, (1,), ("one",), elementwise=True, loops=loops)

    def init(self, h_BSD: jax.Array) -> jax.Array:
        return jnp.zeros_like(h_BSD)

    def update(self, acc: jax.Array, old: Any, new: Any, h_BSD: jax.Array, context: Context) -> tuple[Any, jax.Array]:
        return new, acc + self.weight.get_value() * h_BSD

    def finish(self, acc: jax.Array, h_BSD: jax.Array) -> jax.Array:
        return acc


def forward(lm: FunctionalLM, params: Params, tokens_BS: jax.Array, depth: Depth, **options: Any) -> Output:
    """A pass in which everything travels: halting, reports, statistics."""
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    mask = self_mask(lm.config, jnp.zeros_like(tokens_BS))
    context = Context(positions_BS, mask, "loop", reporting=Reporting(routing=True))
    return Forward(lm.bind(params), tokens_BS, context, depth, jnp.float32, with_statistics=True, **options)()


@pytest.mark.parametrize("per_sequence", [False, True])
def test_one_program_serves_all_depths_whatever_travels_through_the_loops(
    per_sequence: bool, model_config, random_params, tokens_BS
) -> None:
    """Halting, reports, statistics, routers by loop and the state; per batch also parameters of every loop."""
    own = {} if per_sequence else {"conditioning": VectorConditioning(loops=ROWS)}
    experts = MoE(num_experts=3, experts_per_token=1, expert_dim=8, loop_biases=2)
    halting = Blended(loops=None if per_sequence else ROWS)
    lm = FunctionalLM(model_config(feed_forward=experts, halting=halting, **own, **SMALL))
    params, traced = random_params(lm), 0

    @jax.jit
    def gradient(params: Params, trained: jax.Array, detached: jax.Array) -> Params:
        def loss(params: Params) -> jax.Array:
            return jnp.sum(jnp.sin(forward(lm, params, tokens_BS, Depth(WINDOW, trained, detached)).read))

        nonlocal traced
        traced += 1
        return jax.grad(loss)(params)

    shape = tokens_BS.shape[:1] if per_sequence else ()
    found = [gradient(params, jnp.full(shape, t), jnp.full(shape, d)) for t, d in [(1, 0), (3, 0), (3, 2), (2, 40)]]
    sizes = [float(optax.tree.norm(one)) for one in found]
    assert traced == 1
    assert len(set(sizes)) == len(sizes)
    assert np.all(np.isfinite(sizes))


def test_loops_without_gradient_give_exactly_none(model_config, random_params, tokens_BS) -> None:
    """To their own parameters, those of the halting rule, and the state before them."""
    own = {"conditioning": VectorConditioning(loops=ROWS), "halting": Blended(loops=ROWS)}
    lm = FunctionalLM(model_config(**own, **SMALL))
    params = random_params(lm)
    start_BSD = jax.random.normal(jax.random.key(3), (*tokens_BS.shape, lm.config.dim))

    @jax.jit
    def gradients(trained: jax.Array, detached: jax.Array) -> tuple[Params, jax.Array]:
        def loss(params: Params, start_BSD: jax.Array) -> jax.Array:
            depth = Depth(WINDOW, trained, detached)
            return jnp.sum(jnp.sin(forward(lm, params, tokens_BS, depth, start=start_BSD).read))

        return jax.grad(loss, argnums=(0, 1))(params, start_BSD)

    for trained, detached in [(3, 0), (3, 2), (1, 2), (2, 1)]:
        of_params, of_start = gradients(jnp.int32(trained), jnp.int32(detached))
        learns = [t in range(detached, detached + trained) for t in range(ROWS)]
        for table in (of_params["core"]["conditioning"]["vector"], of_params["halting"]["weight"]):
            assert np.any(np.asarray(table) != 0, axis=1).tolist() == learns
        assert np.any(np.asarray(of_start) != 0) == (detached == 0)


def test_a_memory_of_no_places_is_none(model_config, random_params, run_model, tokens_BS) -> None:
    lm = FunctionalLM(model_config())
    params, num_loops = random_params(lm), 2
    empty = jnp.zeros((num_loops, lm.config.block_layers, tokens_BS.shape[0], 0, lm.config.dim))
    without, with_empty = (
        run_model(lm, params, tokens_BS, Depth(num_loops), per_loop=memory).read for memory in (None, empty)
    )
    np.testing.assert_array_equal(with_empty, without)


def test_a_cache_is_filled_by_loops_without_gradient_too(model_config, random_params, tokens_BS) -> None:
    lm = FunctionalLM(model_config(block_layers=1))
    params, (B, S), num_loops = random_params(lm), tokens_BS.shape, 3
    positions_BS = jnp.broadcast_to(jnp.arange(S), (B, S))
    context = Context(positions_BS, cached_mask(lm.config, positions_BS, S))

    def passed(detached: int) -> Callable[[], tuple[jax.Array, Any]]:
        def run() -> tuple[jax.Array, Any]:
            cache = new_cache(
                lm.config, batch_size=B, length=S, policy=parse_policy("each", num_loops), dtype="float32"
            )
            depth = Depth(num_loops - detached, num_detached=detached)
            output = Forward(lm.bind(params), tokens_BS, context, depth, jnp.float32, cache=cache)()
            return output.read, output.cache

        return run

    found, expected = (jax.jit(passed(detached))() for detached in (2, 0))
    assert all(np.all(np.asarray(keys) != 0) for keys in jax.tree.leaves(expected[1].block.keys))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)
