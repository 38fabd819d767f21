"""The exit distribution against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import ExitGate
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM
from looplm.model.gates import exit_loop, log_exit_distribution


def by_definition(gate_logits_R):
    """p_t = lambda_t prod_{j<t} (1 - lambda_j); the last takes the rest; float64, one token."""
    leave, inside, shares = 1 / (1 + np.exp(-np.float64(gate_logits_R))), 1.0, []
    for rate in leave[:-1]:
        shares.append(rate * inside)
        inside *= 1 - rate
    return np.array([*shares, inside])


@pytest.mark.parametrize("scale", [1.0, 10.0, 80.0])
def test_distribution_equals_its_definition_and_sums_to_one(scale):
    logits_RBS = scale * jax.random.normal(jax.random.key(0), (6, 3, 5))
    exit_RBS = np.exp(log_exit_distribution(logits_RBS))
    expected = np.apply_along_axis(by_definition, 0, np.asarray(logits_RBS))
    np.testing.assert_allclose(exit_RBS, expected, atol=1e-6)
    np.testing.assert_allclose(exit_RBS.sum(axis=0), 1.0, atol=1e-5)


def test_loops_that_did_not_run_have_no_share():
    logits_RBS = jax.random.normal(jax.random.key(0), (5, 2, 3))
    active_RB = jnp.array([False, False, True, True, True])[:, None]
    exit_RBS = np.exp(log_exit_distribution(logits_RBS, active_RB))
    np.testing.assert_array_equal(exit_RBS[:2], 0.0)
    np.testing.assert_allclose(exit_RBS[2:], np.exp(log_exit_distribution(logits_RBS[2:])), rtol=1e-6)


def test_gradient_is_finite_and_reaches_every_gate_but_the_last():
    logits_RBS = jnp.array([-200.0, -3.0, 0.0, 3.0])[:, None, None]

    def expected_depth(logits_RBS):
        return jnp.sum(jnp.exp(log_exit_distribution(logits_RBS)) * jnp.arange(1, 5)[:, None, None])

    gradient_R = jax.grad(expected_depth)(logits_RBS)[:, 0, 0]
    assert np.all(np.isfinite(gradient_R))
    assert np.all(gradient_R[1:3] < 0), "a higher rate leaves earlier"
    assert gradient_R[3] == 0


def test_exit_is_the_first_loop_that_reaches_the_threshold():
    exit_RBS = jnp.array([0.1, 0.4, 0.3, 0.2])[:, None, None]
    assert [int(exit_loop(exit_RBS, q)[0, 0]) for q in (0.05, 0.1, 0.45, 0.75, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]


def test_full_threshold_means_full_depth():
    """Rounding may keep the sum below 1: the last loop is the exit all the same."""
    exit_RBS = jnp.exp(log_exit_distribution(jax.random.normal(jax.random.key(0), (7, 4, 9))))
    assert np.all(np.asarray(exit_loop(exit_RBS, 2.0)) == 7)


def test_depth_is_used_at_initialisation(model_config, run_model, tokens_BS):
    lm = FunctionalLM(model_config(exit_gate=ExitGate(initial_exit_probability=0.02)))
    output = run_model(lm, lm.init(jax.random.key(0)), tokens_BS, Depth(4))
    expected_depth = np.sum(np.exp(output.log_exit_RBS) * np.arange(1, 5)[:, None, None], axis=0)
    assert expected_depth.min() > 3.8
