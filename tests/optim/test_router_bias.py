"""The rule that balances experts without a loss, expert by expert."""

import jax.numpy as jnp
import numpy as np

from looplm.optim.router_bias import move_biases

BIAS = "core/block/layers/feed_forward/router/balance_bias"
RATE = 0.1
"""Of the model in conftest."""


def test_a_bias_moves_against_the_load_of_its_expert_and_nothing_else_moves(lm, params, by_path) -> None:
    load_LWE = np.array([[[5, 5, 5, 5]], [[0, 1, 2, 9]], [[8, 0, 0, 0]]], np.int32)
    before, after = by_path(params), by_path(move_biases(lm, params, {"block": jnp.asarray(load_LWE)}))
    direction_LWE = [[[0, 0, 0, 0]], [[1, 1, 1, -1]], [[-1, 1, 1, 1]]]
    np.testing.assert_allclose(after[BIAS], before[BIAS] + RATE * np.array(direction_LWE), rtol=1e-6)
    assert {path for path, leaf in after.items() if leaf is not before[path]} == {BIAS}


def test_a_stack_of_which_no_load_is_known_keeps_its_biases(lm, params, by_path) -> None:
    before, after = by_path(params), by_path(move_biases(lm, params, {}))
    assert all(after[path] is leaf for path, leaf in before.items())
