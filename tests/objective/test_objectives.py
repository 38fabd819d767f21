"""Objectives against their formulas, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import (
    DecidedCrossEntropy,
    ExitGate,
    ExitPrior,
    ExpectedCrossEntropy,
    FinalCrossEntropy,
    GateImprovement,
    Model,
    WeightedCrossEntropy,
)
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.objective import Sums, build_objective, evaluate, with_frozen
from looplm.objective.base import scoring
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


def forward_of(lm, params, data, depth):
    tokens_BS, _ = data
    context = Context(jnp.broadcast_to(jnp.arange(S), (B, S)), self_mask(lm.config, jnp.zeros_like(tokens_BS)))
    return Forward(lm.bind(params), tokens_BS, context, depth, jnp.float32)


def sums_of(lm, params, data, config, depth, key=3):
    return build_objective(config)(forward_of(lm, params, data, depth), data[1], jax.random.key(key))[0]


def run(lm, params, data, config, depth):
    """The sums, what the model gives in every loop, and its logits (R, B, S, V)."""

    @jax.jit
    def compiled(params):
        forward = forward_of(lm, params, data, depth)
        output = forward("all")
        return sums_of(lm, params, data, config, depth), output, jax.vmap(forward.model.logits)(output.read)

    return jax.device_get(compiled(params))


def gradient_of(lm, params, data, config, depth):
    return jax.jit(jax.grad(lambda params: sums_of(lm, params, data, config, depth).objective))(params)


@pytest.mark.parametrize("depth", [Depth(3), Depth(5, jnp.int32(3)), Depth(2, num_detached=1)])
def test_expected_loss_is_the_weighted_sum_less_the_entropy(lm, params, data, depth):
    sums, output, logits_RBSV = run(lm, params, data, ExpectedCrossEntropy(entropy_weight=0.3), depth)
    ran = 3 if depth.num_detached == 0 else 2
    exit_RBS = np.exp(output.log_exit_RBS)[-ran:]
    expected = entropy = 0.0
    for b, s in np.ndindex(B, S):
        if data[1][b, s] < 0:
            continue
        p_R = exit_RBS[:, b, s]
        for t in range(ran):
            logits_V = np.float64(logits_RBSV[t - ran, b, s])
            expected += p_R[t] * (np.log(np.exp(logits_V).sum()) - logits_V[data[1][b, s]])
        entropy -= np.sum(p_R * np.log(p_R))
    np.testing.assert_allclose(sums.objective, expected - 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(sums.extra["gate/entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(np.sum(sums.loops.exit_R), sums.tokens, rtol=1e-5)
    assert sums.tokens == B * (S - 1)


@pytest.mark.parametrize("over", ["token", "batch"])
@pytest.mark.parametrize("depth", [Depth(3), Depth(5, jnp.int32(3))])
@pytest.mark.parametrize("rate", [0.3, None])
def test_exits_are_drawn_to_a_prior(lm, params, data, depth, over, rate):
    config = ExpectedCrossEntropy(entropy_weight=0.0, prior=ExitPrior(over=over, halt_probability=rate, weight=0.7))
    sums, output, _ = run(lm, params, data, config, depth)
    prior_3 = np.array([(1 - (rate or 0)) ** t for t in range(3)])
    prior_3 = prior_3 / prior_3.sum()
    p_N3 = np.float64(np.exp(output.log_exit_RBS))[-3:, np.asarray(data[1]) >= 0].T
    if over == "batch":
        p_N3 = np.broadcast_to(p_N3.mean(axis=0), p_N3.shape)
    divergence = np.sum(p_N3 * np.log(p_N3 / prior_3))
    np.testing.assert_allclose(sums.extra["gate/divergence"], divergence, rtol=1e-4)
    expected = sums.extra["train/expected_loss"] + 0.7 * divergence
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)


@pytest.mark.parametrize("depth", [Depth(3), Depth(5, jnp.int32(3))])
def test_a_decider_learns_beside_the_model_whether_one_more_loop_pays(lm, params, data, depth):
    config = DecidedCrossEntropy(gate_weight=0.4, threshold=0.01)
    sums, output, logits_RBSV = run(lm, params, data, config, depth)
    nll_3BS = np.stack([cross_entropy(logits_BSV, data[1])[0] for logits_BSV in logits_RBSV[-3:]])
    lambda_3BS = 1 / (1 + np.exp(-np.float64(output.gate_logits_RBS[-3:])))
    total = 0.0
    for b, s in zip(*np.nonzero(np.asarray(data[1]) >= 0), strict=True):
        total += np.mean(nll_3BS[:, b, s])
        for t in range(2):
            stop = nll_3BS[t, b, s] - nll_3BS[t + 1, b, s] <= 0.01
            total -= 0.4 / 2 * np.log(lambda_3BS[t, b, s] if stop else 1 - lambda_3BS[t, b, s])
    np.testing.assert_allclose(sums.objective, total, rtol=1e-5)
    gradient = gradient_of(lm, params, data, config, depth)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(gradient))


def test_final_loss_is_that_of_the_last_loop(lm, params, data):
    sums, _, logits_RBSV = run(lm, params, data, FinalCrossEntropy(), Depth(3))
    nll_BS = cross_entropy(logits_RBSV[-1], data[1])[0]
    np.testing.assert_allclose(sums.loss, jnp.sum(nll_BS[:, :-1]), rtol=1e-6)
    assert sums.objective == sums.loss
    assert sums.tokens == B * (S - 1)


def test_model_and_gate_both_learn(lm, params, data):
    gradient = gradient_of(lm, params, data, ExpectedCrossEntropy(), Depth(3))
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(gradient))


def test_gradient_is_finite_where_the_gate_is_certain(lm, params, data):
    certain = {**params, "gate": {"kernel": 300 * params["gate"]["kernel"], "bias": params["gate"]["bias"]}}
    gradient = gradient_of(lm, certain, data, ExpectedCrossEntropy(), Depth(3))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("weights", ["uniform", "linear"])
def test_weighted_loss_follows_its_weights(lm, params, data, weights):
    sums, _, logits_RBSV = run(lm, params, data, WeightedCrossEntropy(weights=weights), Depth(4, jnp.int32(3)))
    weight_R = np.array([1, 1, 1] if weights == "uniform" else [1, 2, 3]) / (3 if weights == "uniform" else 6)
    losses = [float(jnp.sum(cross_entropy(logits, data[1])[0][:, :-1])) for logits in logits_RBSV[1:]]
    np.testing.assert_allclose(sums.objective, weight_R @ losses, rtol=1e-5)


@pytest.mark.parametrize("config", [ExpectedCrossEntropy, WeightedCrossEntropy])
def test_sampled_heads_give_the_right_sum_on_average(lm, params, data, config):
    """Every pair of 4 loops is as likely as any other: the mean over many draws is the sum over all loops."""
    whole = run(lm, params, data, config(), Depth(4))[0].objective
    draw = jax.vmap(lambda key: sums_of(lm, params, data, config(sampled_heads=2), Depth(4), key).objective)
    sampled = jax.jit(draw)(jnp.arange(400))
    error = np.std(sampled) / np.sqrt(len(sampled))
    assert error > 0
    assert abs(np.mean(sampled) - whole) < 4 * error


def test_z_loss_is_the_squared_normaliser(lm, params, data):
    with_z, _, logits_RBSV = run(lm, params, data, FinalCrossEntropy(z_loss_weight=0.5), Depth(2))
    z_BS = jax.nn.logsumexp(logits_RBSV[-1], axis=-1)[:, :-1] ** 2
    np.testing.assert_allclose(with_z.objective - with_z.loss, 0.5 * jnp.sum(z_BS), rtol=1e-5)


def test_gate_stage_follows_its_formula_and_trains_the_gate_alone(lm, params, data):
    config = GateImprovement(sharpness=20.0, threshold=0.01)
    sums, output, logits_RBSV = run(lm, params, data, config, Depth(3))
    nll_RBS = np.float64([cross_entropy(logits_BSV, data[1])[0] for logits_BSV in logits_RBSV])
    leave_RBS = 1 / (1 + np.exp(-np.float64(output.gate_logits_RBS)))
    expected = 0.0
    for t, b, s in np.ndindex(2, B, S - 1):
        go_on = 1 / (1 + np.exp(-20.0 * (max(0.0, nll_RBS[t, b, s] - nll_RBS[t + 1, b, s]) - 0.01)))
        rate = leave_RBS[t, b, s]
        expected -= (go_on * np.log(1 - rate) + (1 - go_on) * np.log(rate)) / 3
    np.testing.assert_allclose(sums.objective, expected, rtol=1e-4)
    np.testing.assert_allclose(sums.loss, nll_RBS[-1, :, :-1].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.loops.loss_R, nll_RBS[:, :, :-1].sum(axis=(1, 2)), rtol=1e-5)
    first_BS, second_BS = leave_RBS[0], (1 - leave_RBS[0]) * leave_RBS[1]
    shares_RBS = np.stack([first_BS, second_BS, 1 - first_BS - second_BS])
    np.testing.assert_allclose(sums.loops.exit_R, shares_RBS[:, :, :-1].sum(axis=(1, 2)), rtol=1e-5)
    assert sums.tokens == B * (S - 1)

    def objective(params):
        frozen = with_frozen(build_objective(config), lm, params)
        return sums_of(lm, frozen, data, config, Depth(3)).objective

    gradient = jax.jit(jax.grad(objective))(params)
    assert np.any(gradient["gate"]["kernel"])
    assert not any(np.any(leaf) for name in gradient if name != "gate" for leaf in jax.tree.leaves(gradient[name]))


def test_an_objective_that_logs_arrays_is_told_where_they_go(lm, params, data):
    def listing(forward, labels_BS, key):
        output = forward("all", scoring(forward.model, labels_BS))
        loss_R = jnp.sum(output.read.nll_BS, axis=(1, 2))
        return Sums(loss_R[-1], loss_R[-1], jnp.sum(labels_BS >= 0), {"train/all": loss_R}), output

    forward = forward_of(lm, params, data, Depth(2))
    with pytest.raises(UserError, match=r"'train/all' has the shape \(2,\).*Sums\.loops"):
        evaluate(listing, forward, data[1], jax.random.key(0))
