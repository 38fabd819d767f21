"""The core of two states: its numbers and gradients, what it becomes at the edges, and its loops inside of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import (
    AddInjection,
    InputState,
    NoInjection,
    NormalState,
    SingleCore,
    TwoSpeedCore,
    VectorState,
)
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.inputs import Inputs
from looplm.ops.attention import self_mask
from tests.model import plain

SMALL = dict(
    prelude_layers=0, block_layers=1, coda_layers=0, num_heads=2, num_kv_heads=None, exit_gate=None,
    injection=AddInjection(), norm="unit",
    norm_placement="post", norm_eps=1e-2, norm_at_loop_end=False, attention_mask="full",
    state_init=VectorState(learned=True), final_norm=False,
)  # fmt: skip
LEARNED = VectorState(learned=True)


@pytest.fixture(scope="module")
def built(model_config, random_params):
    def build(**fields):
        lm = FunctionalLM(model_config(**{**SMALL, **fields}))
        return lm, random_params(lm)

    return build


def forward(lm, params, tokens_BS, depth, **options):
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(
        positions_BS, self_mask(lm.config, jnp.zeros_like(tokens_BS)), "loop", key=jax.random.key(5),
        sequence_B=jnp.arange(tokens_BS.shape[0]),
    )  # fmt: skip
    return Forward(lm.bind(params), tokens_BS, context, depth, jnp.float32, **options)()


def compiled(lm, params, tokens_BS, depth, **options):
    return jax.jit(lambda params, options: forward(lm, params, tokens_BS, depth, **options))(params, options)


def loss_and_grads(logits_of, params):
    return jax.jit(jax.value_and_grad(lambda params: jnp.sum(jnp.sin(logits_of(params)))))(params)


def logits(lm, params, tokens_BS, depth, **options):
    return lm.bind(params).logits(forward(lm, params, tokens_BS, depth, **options).read[-1])


def assert_equal(ours, theirs, *, atol=2e-5):
    (our_loss, our_grads), (their_loss, their_grads) = ours, theirs
    np.testing.assert_allclose(our_loss, their_loss, rtol=1e-5)
    for (path, mine), other in zip(jax.tree.leaves_with_path(our_grads), jax.tree.leaves(their_grads), strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        assert scale > 0, f"{jax.tree_util.keystr(path)} gets no gradient"
        np.testing.assert_allclose(mine / scale, other / scale, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(dict(core=TwoSpeedCore(inner_loops=2, low_init=LEARNED)), marks=pytest.mark.slow),
        dict(
            core=TwoSpeedCore(inner_loops=1, high_layers=2, damping=0.7, low_init=LEARNED), norm="rms",
            norm_placement="pre", norm_at_loop_end=True, state_init=InputState(), injection=NoInjection(),
        ),
    ],
    ids=["one block", "a block each"],
)  # fmt: skip
def test_numbers_and_gradients_equal_a_plain_implementation(fields, built, tokens_BS):
    lm, params = built(**fields)

    def reference(params):
        return jax.vmap(lambda tokens_S: plain.forward(lm.config, params, tokens_S, 2)[0][-1])(tokens_BS)

    ours = loss_and_grads(lambda params: logits(lm, params, tokens_BS, Depth(2)), params)
    assert_equal(ours, loss_and_grads(reference, params))


@pytest.mark.parametrize(
    ("inner_backprop", "trained"),
    [
        ((2,), [1, 2]),
        pytest.param((3, 1), [1, 3, 1], marks=pytest.mark.slow),
        pytest.param(1, [1, 1, 1], marks=pytest.mark.slow),
    ],
)
def test_inner_loops_before_the_last_have_no_gradient(inner_backprop, trained, built, tokens_BS):
    """As written out with stopped gradients; the high state passes its gradient on from loop to loop."""
    core = TwoSpeedCore(inner_loops=3, inner_backprop=inner_backprop, high_layers=1, low_init=LEARNED)
    lm, params = built(core=core)
    stop = jax.lax.stop_gradient

    def sequence(params, tokens_S):
        e_SD = params["embedding"]["table"][tokens_S]
        high, low = (0 * e_SD + params["core"][name] for name in ("first", "low_first"))
        for k in trained:
            for i in range(3):
                here = (params["core"]["block"], low, high, e_SD)
                block, low, given, e = stop(here) if i < 3 - k else here
                low = plain.layers(lm.config, block, low + given + e, None, tokens_S)
            high = plain.layers(lm.config, params["core"]["high_block"], high + low, None, tokens_S)
        return high @ params["head"].T

    ours = loss_and_grads(lambda params: logits(lm, params, tokens_BS, Depth(len(trained))), params)
    theirs = loss_and_grads(lambda params: jax.vmap(lambda tokens_S: sequence(params, tokens_S))(tokens_BS), params)
    # In every loop the low state is stopped before the first inner loop that is trained.
    for _, grads in (ours, theirs):
        assert not np.any(grads["core"].pop("low_first"))
    assert_equal(ours, theirs)


def test_two_blocks_that_are_equal_are_one(built, tokens_BS):
    (two, params), (one, _) = (
        built(core=TwoSpeedCore(inner_loops=2, low_init=LEARNED, high_layers=high)) for high in (1, None)
    )
    block = params["core"]["block"]
    tied = {**params, "core": {**params["core"], "high_block": block}}
    shared = {**params, "core": {key: value for key, value in params["core"].items() if key != "high_block"}}
    ours = loss_and_grads(lambda params: logits(two, params, tokens_BS, Depth(2)), tied)
    theirs = loss_and_grads(lambda params: logits(one, params, tokens_BS, Depth(2)), shared)
    ours[1]["core"]["block"] = jax.tree.map(jnp.add, ours[1]["core"]["block"], ours[1]["core"].pop("high_block"))
    assert_equal(ours, theirs)


def test_without_inner_loops_a_low_state_that_is_the_input_is_an_injection(built, tokens_BS):
    one, params = built()
    two, _ = built(core=TwoSpeedCore(inner_loops=0, low_init=InputState()))
    ours, theirs = (
        loss_and_grads(lambda params, lm=lm: logits(lm, params, tokens_BS, Depth(3)), params) for lm in (two, one)
    )
    assert_equal(ours, theirs)


def test_without_damping_noise_and_drawn_states_it_is_the_plain_core(built, tokens_BS):
    """The states that a drawn model is given in place of its own are the other's vectors."""
    plain_core = TwoSpeedCore(inner_loops=2)
    drawn = plain_core.model_copy(update={"low_init": NormalState(std=1.0)})
    (one, params), (other, _) = built(core=plain_core), built(core=drawn, state_init=NormalState(std=1.0))
    first = one.bind(params).core.init_state(*first_inputs(one, tokens_BS))
    block = {**params, "core": {"block": params["core"]["block"]}}
    given = compiled(other, block, tokens_BS, Depth(2), start=first).read
    np.testing.assert_allclose(given, compiled(one, params, tokens_BS, Depth(2)).read, atol=1e-5)
    assert np.any(np.abs(compiled(other, block, tokens_BS, Depth(2)).read - given) > 0.1)


def test_one_program_serves_all_depths_and_detached_loops_give_no_gradient(built, tokens_BS):
    lm, params = built(core=TwoSpeedCore(inner_loops=2, inner_backprop=(1, 2), low_init=LEARNED))
    traced = 0

    @jax.jit
    def gradient(params, trained, detached):
        nonlocal traced
        traced += 1
        depth = Depth(2, trained, detached)
        return jax.grad(lambda params: jnp.sum(jnp.sin(forward(lm, params, tokens_BS, depth).read)))(params)

    found = [gradient(params, jnp.int32(t), jnp.int32(d)) for t, d in [(1, 0), (2, 0), (2, 3), (1, 7)]]
    assert traced == 1
    assert [bool(np.any(one["core"]["first"])) for one in found] == [True, True, False, False]
    norms = [float(jnp.linalg.norm(one["core"]["block"]["layers"]["attention"]["output"]["kernel"])) for one in found]
    assert len(set(norms)) == len(norms)


@pytest.mark.parametrize("core", [SingleCore(noise=0.1), TwoSpeedCore(inner_loops=1, noise=0.1)])
def test_noise_is_a_tokens_own_and_another_in_every_call(core, built, tokens_BS):
    """At a block that gives nothing, states are what was drawn."""
    init = NormalState(std=1.0)
    core = core.model_copy(update={"low_init": init}) if isinstance(core, TwoSpeedCore) else core
    lm, params = built(core=core, state_init=init, norm_placement="pre", injection=NoInjection())
    zero = {**params, "core": jax.tree.map(jnp.zeros_like, params["core"])}
    states = jax.tree.map(np.asarray, [compiled(lm, zero, tokens_BS, Depth(n)).state for n in (1, 2)])
    if isinstance(core, TwoSpeedCore):
        # low <- low + high + noise; high <- high + low + noise
        (high, low), (next_high, next_low) = states
        first_high = next(iter(lm.bind(zero).core.init_state(*first_inputs(lm, tokens_BS))))
        drawn = [high - low - first_high, next_low - low - high, next_high - high - next_low]
    else:
        drawn = [states[1] - states[0]]
    for i, noise_BSD in enumerate(drawn):
        assert noise_BSD.std() == pytest.approx(0.1, rel=0.1)
        assert abs(noise_BSD.mean()) < 0.02
        assert abs(np.corrcoef(noise_BSD[0].ravel(), noise_BSD[1].ravel())[0, 1]) < 0.2
        for other in drawn[:i]:
            assert abs(np.corrcoef(noise_BSD.ravel(), other.ravel())[0, 1]) < 0.2
    alone = compiled(lm, zero, tokens_BS[:1, :4], Depth(2)).state
    np.testing.assert_allclose(jax.tree.leaves(alone)[0], jax.tree.leaves(states[1])[0][:1, :4], atol=1e-6)


def first_inputs(lm, tokens_BS):
    shape = (*tokens_BS.shape, lm.config.dim)
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    mask = self_mask(lm.config, jnp.zeros_like(tokens_BS))
    context = Context(positions_BS, mask, key=jax.random.key(5), sequence_B=jnp.arange(tokens_BS.shape[0]))
    return Inputs(jnp.zeros(shape), jnp.zeros(shape), tokens_BS), context


@pytest.mark.parametrize("core", [SingleCore(), TwoSpeedCore(inner_loops=1)])
def test_fresh_rows_begin_anew_and_the_others_go_on(core, built, tokens_BS):
    lm, params = built(core=core)
    before = compiled(lm, params, tokens_BS, Depth(2))
    fresh_B = jnp.arange(tokens_BS.shape[0]) == 0
    mixed = compiled(lm, params, tokens_BS, Depth(1), start=before.state, fresh_B=fresh_B).state
    first, goes_on = (compiled(lm, params, tokens_BS, Depth(n)).state for n in (1, 3))
    for found, new, old in zip(*map(jax.tree.leaves, (mixed, first, goes_on)), strict=True):
        np.testing.assert_allclose(found, jnp.concatenate([new[:1], old[1:]]), atol=1e-5)


def test_a_vector_is_trained_only_if_it_is_learned(built, tokens_BS):
    for learned in (False, True):
        lm, params = built(state_init=VectorState(learned=learned))
        _, grads = loss_and_grads(lambda params, lm=lm: logits(lm, params, tokens_BS, Depth(1)), params)
        assert np.any(grads["core"]["first"]) == learned
        assert not lm.declarations["core", "first"].decays
