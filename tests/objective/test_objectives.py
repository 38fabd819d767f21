"""Objectives against their formulas, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import ExitGate, ExpectedCrossEntropy, FinalCrossEntropy, Model
from looplm.model.context import Context
from looplm.model.functional import FunctionalLM
from looplm.model.loop import Depth
from looplm.objective import build_objective
from looplm.ops.attention import self_mask
from looplm.ops.cross_entropy.reference import cross_entropy

VOCAB, B, S = 23, 2, 9


@pytest.fixture(scope="module")
def lm():
    return FunctionalLM(
        Model(vocab_size=VOCAB, dim=16, num_heads=2, hidden_dim=24, block_layers=1, exit_gate=ExitGate())
    )


@pytest.fixture(scope="module")
def params(lm):
    params = lm.init(jax.random.key(0))
    params["gate"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 1))
    return params


@pytest.fixture(scope="module")
def data():
    tokens_BS = jax.random.randint(jax.random.key(2), (B, S), 0, VOCAB)
    return tokens_BS, jnp.roll(tokens_BS, -1, axis=1).at[:, -1].set(-100)


def run(lm, params, data, config, depth):
    tokens_BS, labels_BS = data
    model, objective = lm.bind(params), build_objective(config)
    positions_BS = jnp.broadcast_to(jnp.arange(S), (B, S))
    context = Context(positions_BS, self_mask(lm.config, jnp.zeros_like(tokens_BS)))
    read = objective.read_loops(depth.window, jax.random.key(3))
    output = model(tokens_BS, context, depth, dtype=jnp.float32, read_loops=read)
    return objective(model, output, labels_BS, read), output, model


@pytest.mark.parametrize("depth", [Depth(3), Depth(5, jnp.int32(3)), Depth(2, num_detached=1)])
def test_expected_loss_is_the_weighted_sum_less_the_entropy(lm, params, data, depth):
    sums, output, model = run(lm, params, data, ExpectedCrossEntropy(entropy_weight=0.3), depth)
    ran = 3 if depth.num_detached == 0 else 2
    exit_RBS = np.exp(output.log_exit_RBS)[-ran:]
    expected = entropy = 0.0
    for b, s in np.ndindex(B, S):
        if data[1][b, s] < 0:
            continue
        p_R = exit_RBS[:, b, s]
        for t in range(ran):
            logits_V = np.float64(model.logits(output.hidden_RBSD[t - ran])[b, s])
            expected += p_R[t] * (np.log(np.exp(logits_V).sum()) - logits_V[data[1][b, s]])
        entropy -= np.sum(p_R * np.log(p_R))
    np.testing.assert_allclose(sums.objective, expected - 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(sums.extra["gate/entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(np.sum(sums.extra["gate/exit"]), sums.tokens, rtol=1e-5)
    assert sums.tokens == B * (S - 1)


def test_final_loss_is_that_of_the_last_loop(lm, params, data):
    sums, output, model = run(lm, params, data, FinalCrossEntropy(), Depth(3))
    nll_BS = cross_entropy(model.logits(output.hidden_RBSD[-1]), data[1])[0]
    np.testing.assert_allclose(sums.loss, jnp.sum(nll_BS[:, :-1]), rtol=1e-6)
    assert sums.objective == sums.loss


def test_model_and_gate_both_learn(lm, params, data):
    def objective(params):
        return run(lm, params, data, ExpectedCrossEntropy(), Depth(3))[0].objective

    gradient = jax.grad(objective)(params)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(gradient))


def test_gradient_is_finite_where_the_gate_is_certain(lm, params, data):
    certain = {**params, "gate": {"kernel": 300 * params["gate"]["kernel"], "bias": params["gate"]["bias"]}}
    gradient = jax.grad(lambda p: run(lm, p, data, ExpectedCrossEntropy(), Depth(3))[0].objective)(certain)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
