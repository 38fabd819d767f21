"""The whole model against a second implementation, and properties that every variant must have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import (
    AddInjection,
    ConcatInjection,
    DiagonalInjection,
    MixtureAttention,
    MoE,
    NoInjection,
    ReadOut,
    Rope,
    ValueEmbedding,
)
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM
from looplm.ops.cross_entropy.reference import cross_entropy
from tests.model import plain

LAYER_NORM = "layer norm, head bias, half of a head turns, experts in the attention"
VARIANTS = {
    "everything": dict(block_layers=1),
    "ouro-like": dict(prelude_layers=0, coda_layers=0, final_norm=False, injection=NoInjection(), num_kv_heads=None),
    "pre-norm, add, tied": dict(
        norm_placement="pre", norm_at_loop_end=False, injection=AddInjection(), tie_embeddings=True, exit_gate=None
    ),
    "value embeddings, read-out": dict(
        value_embedding=ValueEmbedding(gate_channels=7), read_out=ReadOut(), block_layers=2
    ),
    LAYER_NORM: dict(
        norm="layer",
        head_bias=True,
        head_dim=8,
        rope=Rope(fraction=0.5),
        coda_layers=0,
        prelude_layers=0,
        attention=MixtureAttention(num_experts=3, experts_per_token=2),
    ),
    "one expert a head": dict(
        attention=MixtureAttention(num_experts=1, experts_per_token=1), coda_layers=0, prelude_layers=0, exit_gate=None
    ),
    "value embeddings in some layers, dense layers among experts": dict(
        value_embedding=ValueEmbedding(every=2, gate_channels=7),
        feed_forward=MoE(num_experts=3, experts_per_token=2, expert_dim=8, dense_layers=(0,)),
        prelude_layers=0,
        block_layers=3,
        coda_layers=0,
    ),
    "concat, state first, with a bias": dict(injection=ConcatInjection(init="state", bias=True), head_dim=10),
}


SLOW = (
    LAYER_NORM,
    "ouro-like",
    "one expert a head",
    "value embeddings, read-out",
    "value embeddings in some layers, dense layers among experts",
    "concat, state first, with a bias",
    "pre-norm, add, tied",
)
"""Others have the same parts, one by one."""


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS]
)
def test_logits_gates_and_gradients_equal_a_plain_implementation(
    variant, model_config, random_params, run_model, tokens_BS
):
    config, num_loops = model_config(**VARIANTS[variant]), 2
    lm = FunctionalLM(config)
    params = random_params(lm)

    def engine(params):
        output = run_model(lm, params, tokens_BS, Depth(num_loops))
        model = lm.bind(params)
        return jax.vmap(model.logits)(output.read), output.gate_logits_RBS

    def reference(params):
        logits, gates = jax.vmap(lambda tokens_S: plain.forward(config, params, tokens_S, num_loops))(tokens_BS)
        return jnp.moveaxis(logits, 1, 0), None if gates is None else jnp.moveaxis(gates, 1, 0)

    def run(function):
        def loss(params):
            logits_RBSV, gates_RBS = function(params)
            nll = sum(jnp.sum(cross_entropy(logits_BSV, tokens_BS)[0]) for logits_BSV in logits_RBSV)
            return nll + (0 if gates_RBS is None else jnp.sum(jnp.sin(gates_RBS))), (logits_RBSV, gates_RBS)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    ((our_loss, our_outputs), ours), ((their_loss, their_outputs), theirs) = run(engine), run(reference)
    for mine, other in zip(our_outputs, their_outputs, strict=True):
        if other is not None:
            np.testing.assert_allclose(mine, other, atol=2e-5)
    np.testing.assert_allclose(our_loss, their_loss, rtol=1e-6)
    for (path, mine), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        assert scale > 0, f"{jax.tree_util.keystr(path)} gets no gradient"
        np.testing.assert_allclose(mine / scale, other / scale, atol=2e-5, err_msg=jax.tree_util.keystr(path))


def test_a_token_depends_on_what_precedes_it_and_on_nothing_else(model_config, random_params, run_model, tokens_BS):
    lm = FunctionalLM(model_config())
    params, position = random_params(lm), 5

    def hidden(table_VD):
        # One row per position, so that the gradient tells which positions matter.
        embedded = {**params, "embedding": {"table": table_VD}}
        return jnp.sum(run_model(lm, embedded, jnp.arange(11)[None], Depth(3)).read[-1, 0, position] ** 2)

    influence = jnp.sum(jnp.abs(jax.jit(jax.grad(hidden))(params["embedding"]["table"])), axis=-1)
    assert np.all(np.asarray(influence[: position + 1]) > 0)
    assert np.all(np.asarray(influence[position + 1 :]) == 0)


def test_one_loop_is_the_plain_stack(model_config, random_params, run_model, tokens_BS):
    """Prelude, block and coda, each once, compute what their layers do in one block."""
    plain_one = dict(injection=NoInjection(), exit_gate=None, norm_at_loop_end=False)
    parted = FunctionalLM(model_config(**plain_one, prelude_layers=1, block_layers=3, coda_layers=2))
    stacked = FunctionalLM(model_config(**plain_one, prelude_layers=0, block_layers=6, coda_layers=0))
    params = random_params(parted)
    stacks = params["prelude"]["layers"], params["core"]["block"]["layers"], params["coda"]["layers"]
    one_stack = jax.tree.map(lambda *layers: jnp.concatenate(layers), *stacks)
    others = {name: leaf for name, leaf in params.items() if name not in ("prelude", "core", "coda")}
    found = run_model(parted, params, tokens_BS, Depth(1)).read
    expected = run_model(stacked, others | {"core": {"block": {"layers": one_stack}}}, tokens_BS, Depth(1)).read
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found).max() > 1


def test_a_tied_head_is_the_table(model_config, random_params, run_model, tokens_BS):
    untied, tied = FunctionalLM(model_config()), FunctionalLM(model_config(tie_embeddings=True))
    assert untied.num_params - tied.num_params == 37 * 24
    shared = {name: leaf for name, leaf in random_params(untied).items() if name != "head"}
    separate = shared | {"head": shared["embedding"]["table"]}
    found, expected = (
        lm.bind(params).logits(run_model(lm, params, tokens_BS, Depth(2)).read[-1])
        for lm, params in ((tied, shared), (untied, separate))
    )
    np.testing.assert_array_equal(found, expected)


def test_how_it_runs_does_not_change_what_it_computes(model_config, random_params, run_model, tokens_BS):
    lm = FunctionalLM(model_config(block_layers=2, prelude_layers=0, coda_layers=0))
    params = random_params(lm)

    def loss(params, **options):
        output = run_model(lm, params, tokens_BS, Depth(2, num_detached=1), **options)
        return jnp.sum(output.read**2) + jnp.sum(output.gate_logits_RBS)

    ways = ({}, {"remat": "layer"}, {"remat": "loop"}, {"unroll": True})
    expected, *others = (jax.jit(jax.grad(partial(loss, **way)))(params) for way in ways)
    for actual in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, expected)


@pytest.mark.parametrize(("detached", "trained"), [(0, 4), (3, 1), (1, 2), (0, 3)])
def test_statistics_look_back_over_the_detached_prefix(
    detached, trained, model_config, random_params, run_model, tokens_BS
):
    lm = FunctionalLM(model_config(coda_layers=0, final_norm=False))  # what the head reads is the state
    params = random_params(lm)
    states_RBSD = np.asarray(run_model(lm, params, tokens_BS, Depth(detached + trained)).read)
    update_BSD, before_BSD = states_RBSD[-1] - states_RBSD[-2], states_RBSD[-2] - states_RBSD[-3]
    norms_BS = np.linalg.norm(update_BSD, axis=-1) * np.linalg.norm(before_BSD, axis=-1)
    # A window of 4, of which fewer loops may run.
    depth = Depth(4, jnp.int32(trained), jnp.int32(detached))
    statistics = run_model(lm, params, tokens_BS, depth, with_statistics=True).statistics
    np.testing.assert_allclose(
        statistics.update_cosine_BS, np.sum(update_BSD * before_BSD, axis=-1) / norms_BS, atol=1e-4
    )


def test_a_single_loop_has_no_update_before_it(model_config, random_params, run_model, tokens_BS):
    lm = FunctionalLM(model_config())
    params = random_params(lm)
    statistics = run_model(lm, params, tokens_BS, Depth(1), with_statistics=True).statistics
    np.testing.assert_array_equal(statistics.update_cosine_BS, 0.0)
    every = {"with_statistics": True, "statistics_of_all": True}
    of_all = run_model(lm, params, tokens_BS, Depth(3), **every).statistics
    assert of_all.state_norm_BS.shape == (3, *tokens_BS.shape)
    last = run_model(lm, params, tokens_BS, Depth(3), with_statistics=True).statistics
    for loop, alone in ((0, statistics), (2, last)):
        for found, wanted in zip(of_all, alone, strict=True):
            np.testing.assert_allclose(found[loop], wanted, rtol=1e-5, atol=1e-6)


def test_the_decay_of_the_diagonal_injection_is_measured(model_config, random_params):
    lm = FunctionalLM(model_config(injection=DiagonalInjection()))
    params = random_params(lm)
    generator = np.random.default_rng(0)
    rate_D, bias_D = (generator.normal(size=24).astype(np.float32) for _ in range(2))
    params["core"]["injection"] |= {"log_rate": rate_D, "step_bias": bias_D}
    decay_D = np.exp(-np.log1p(np.exp(bias_D)) * np.exp(rate_D))
    measured = lm.bind(params).parameter_metrics()
    np.testing.assert_allclose(measured.pop("loop/decay_mean"), decay_D.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured.pop("loop/decay_max"), decay_D.max(), rtol=1e-5)
    assert measured == {}
