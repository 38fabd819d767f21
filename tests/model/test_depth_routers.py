"""Routers over depth where they must change nothing, and where they may not look ahead.

The official code: test_golden_mor.py.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import ExpertChoice, NoInjection, TokenChoice
from looplm.errors import UserError
from looplm.infer.cache import check_writes
from looplm.model.context import Context
from looplm.model.depth import Depth, Loop
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask

R = 3


def passes(lm, params, tokens_BS, *, training):
    segments_BS = jnp.zeros_like(tokens_BS)
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(positions_BS, self_mask(lm.config, segments_BS), with_capacity=training)
    return Forward(lm.bind(params), tokens_BS, context, Depth(R), jnp.float32)


def outputs(lm, params, tokens_BS, *, training):
    return jax.jit(lambda params: passes(lm, params, tokens_BS, training=training)())(params)


@pytest.fixture(scope="module")
def expert(model_config, random_params):
    sizes = dict(prelude_layers=0, block_layers=1, coda_layers=0)
    halting = ExpertChoice(capacities=(1.0, 0.5, 0.2))
    lm = FunctionalLM(model_config(injection=NoInjection(), halting=halting, **sizes))
    return lm, random_params(lm)


def test_with_room_for_all_every_token_takes_part_in_every_loop(expert, tokens_BS, model_config):
    lm = FunctionalLM(lm_config := expert[0].config.model_copy(update={"halting": ExpertChoice(capacities=(1.0,) * R)}))
    forward = passes(lm, expert[1], tokens_BS, training=True)
    model, context = forward.model, forward.context
    inputs, _ = jax.jit(lambda: model.enter(tokens_BS, context, jnp.float32))()
    state_BSD = model.core.init_state(inputs, context)

    @jax.jit
    def step(state_BSD, t):
        return model.core.step(state_BSD, inputs, replace(context, loop=Loop(jnp.full(1, t), jnp.full(1, R))), None)[0]

    for t in range(R):
        new_BSD = step(state_BSD, t)
        logit_BS = state_BSD @ expert[1]["halting"]["router"]["units"]["kernel"][t][:, 0]
        state_BSD += (0.1 / (1 + jnp.exp(-logit_BS)))[..., None] * new_BSD
    assert lm_config.halting.alpha == 0.1
    output = outputs(lm, expert[1], tokens_BS, training=True)
    np.testing.assert_allclose(output.state, state_BSD, rtol=2e-5, atol=2e-5)
    assert np.all(output.halt.loops_BS == R)


def test_a_loop_takes_its_share_of_those_before(expert, tokens_BS):
    loops_BS = outputs(*expert, tokens_BS, training=True).halt.loops_BS
    S = tokens_BS.shape[1]
    for t, share in enumerate((1.0, 0.5, 0.2)):
        np.testing.assert_array_equal(np.sum(loops_BS > t, axis=1), max(1, int(share * S)))


@pytest.mark.parametrize("halting", [None, TokenChoice(loops=R)])
def test_outside_of_training_nothing_looks_ahead(expert, random_params, tokens_BS, halting):
    lm, params = expert
    if halting is not None:
        lm = FunctionalLM(lm.config.model_copy(update={"halting": halting}))
        params = random_params(lm)
    cut = tokens_BS.shape[1] // 2
    whole, part = (outputs(lm, params, given, training=False) for given in (tokens_BS, tokens_BS[:, :cut]))
    np.testing.assert_allclose(whole.read[:, :, :cut], part.read, rtol=2e-5, atol=2e-5)
    deepest = np.asarray(lm.bind(params).halting.exits(whole.halt))
    assert len(np.unique(deepest)) > 1, "tokens differ in their depth"


def test_gathered_rows_give_the_numbers_of_the_masked_form(expert):
    lm, params = expert
    halting = lm.config.halting.model_copy(update={"capacities": (0.9, 0.5, 0.2), "z_loss_weight": 0.1})
    tokens_BS = jax.random.randint(jax.random.key(3), (3, 20), 0, lm.config.vocab_size)
    segments_BS = jnp.array([[0] * 20, [0] * 7 + [1] * 13, [0] * 4 + [1] * 16])
    positions_BS = jnp.array([[*range(20)], [*range(7), *range(13)], [*range(4), *range(16)]])
    counted_BS = jnp.arange(20) < jnp.array([20, 20, 4])[:, None]

    def outcome(params, gathers):
        update = {"halting": halting.model_copy(update={"gathers": gathers})}
        bound = FunctionalLM(lm.config.model_copy(update=update)).bind(params)
        mask = self_mask(lm.config, segments_BS)
        context = Context(positions_BS, mask, "loop", unroll=True, counted_BS=counted_BS, with_capacity=True)
        output = Forward(bound, tokens_BS, context, Depth(R), jnp.float32)()
        told = bound.halting.told(output.halt, counted_BS, None)
        loss = jnp.sum(jnp.sin(3 * output.read[0]) * counted_BS[..., None]) + jnp.sum(told.cost_B)
        return loss, (output.read, output.state, output.halt, told)

    runs = {flag: jax.jit(jax.value_and_grad(partial(outcome, gathers=flag), has_aux=True)) for flag in (True, False)}
    (loss, seen), grads = runs[True](params)
    (masked_loss, masked_seen), masked_grads = runs[False](params)
    assert {0, R} < set(np.ravel(seen[2].loops_BS).tolist())
    np.testing.assert_allclose(loss, masked_loss, rtol=1e-5)

    def compare(gathered, masked):
        np.testing.assert_allclose(gathered, masked, atol=1e-5 * max(1, np.max(np.abs(masked))))

    jax.tree.map(compare, (seen, grads), (masked_seen, masked_grads))
    # What nobody computes is not in the program: the widest product over channels has the rows of its loop.
    shapes = str(jax.make_jaxpr(partial(outcome, gathers=True))(params))
    assert all(f"f32[3,{rows},40]" in shapes for rows in (18, 10, 4))


def test_writing_is_refused_by_name(expert):
    with pytest.raises(UserError, match=r"model\.halting=expert_choice"):
        check_writes(expert[0].config)
