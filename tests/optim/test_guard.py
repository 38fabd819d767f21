"""What the guard calls bad, against plain numpy, and that it then changes nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from looplm.config.schema import Guard
from looplm.optim.guard import ENOUGH, WINDOW, guarded, limits

GRADIENT = {"w": jnp.float32([0.5, -0.25, 0.0])}


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    return {"w": jnp.float32([1.0, -0.0, 2.0])}


def train(params: Any, losses: Any, norms: Any, **config: Any) -> tuple[list[Any], list[Any]]:
    """Runs Adam over steps with these losses and norms; returns parameters and states, the first ones too."""
    optimizer = guarded(optax.adam(0.1), Guard(**config))

    @jax.jit
    def step(params: Any, state: Any, loss: jax.Array, norm: jax.Array) -> tuple[Any, Any]:
        gradient = jax.tree.map(lambda g: g + 0 * loss * norm, GRADIENT)  # not finite where they are not
        updates, state = optimizer.update(gradient, state, params, loss=loss, grad_norm=norm)
        return optax.apply_updates(params, updates), state

    all_params, states = [params], [optimizer.init(params)]
    for loss, norm in zip(losses, norms, strict=True):
        new, state = step(all_params[-1], states[-1], jnp.float32(loss), jnp.float32(norm))
        all_params.append(new)
        states.append(state)
    return all_params, states


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "norm"])
def test_what_is_not_finite_changes_nothing_from_the_first_step_on(params, bad: float, where: str) -> None:
    values = [bad, 1.0, bad, bad, 1.0]
    losses, norms = (values, [1.0] * 5) if where == "loss" else ([1.0] * 5, values)
    all_params, states = train(params, losses, norms)
    for step, value in enumerate(values):
        before, after = (all_params[step], states[step]), (all_params[step + 1], states[step + 1])
        kept = bits((before[0], before[1].optimizer)) == bits((after[0], after[1].optimizer))
        assert kept == (value is bad)
    guard = [state.guard for state in states[1:]]
    assert [int(g.skipped) for g in guard] == [1, 1, 2, 3, 3]
    assert [int(g.in_a_row) for g in guard] == [1, 0, 1, 2, 0]
    assert [int(g.num_good) for g in guard] == [0, 1, 1, 1, 2]
    # As if the bad steps had not been.
    clean_params, clean_states = train(params, [1.0, 1.0], [1.0, 1.0])
    assert bits(all_params[-1]) == bits(clean_params[-1])
    assert bits(states[-1].optimizer) == bits(clean_states[-1].optimizer)
    assert bits(states[-1].guard.good_2W) == bits(clean_states[-1].guard.good_2W)


def expected_limit(good: list[float], deviations: float) -> float:
    """By numpy, from the last good values."""
    if len(good) < ENOUGH:
        return np.inf
    window = np.array(good[-WINDOW:])
    median = np.median(window)
    spread = max(1.4826 * np.median(np.abs(window - median)), 0.01 * abs(median))
    return median + deviations * spread


def test_spikes_are_those_that_numpy_finds(params) -> None:
    """More than two windows of values, of which some jump, one pair at once, and one lasts for a while."""
    generator = np.random.default_rng(0)
    losses = 3 + 0.1 * generator.normal(size=300)
    norms = 1 + 0.2 * np.abs(generator.normal(size=300))
    losses[[10, 60, 200]] = 9.0  # the first comes before enough is known
    norms[[61, 130]] = [40.0, np.nan]
    norms[250:255] = 30.0
    losses[251] = np.inf
    _, states = train(params, losses, norms, spike_deviations=8)

    good: list[tuple[float, float]] = []
    for step, values in enumerate(zip(losses, norms, strict=True)):
        wanted = [expected_limit([pair[i] for pair in good], 8) for i in (0, 1)]
        np.testing.assert_allclose(limits(states[step].guard, Guard(spike_deviations=8)), wanted, rtol=1e-5)
        is_good = all(np.isfinite(value) and value <= limit for value, limit in zip(values, wanted, strict=True))
        assert int(states[step + 1].guard.in_a_row == 0) == is_good, step
        good += [values] if is_good else []
    assert int(states[-1].guard.skipped) == 4 + 5
    assert int(states[254 + 1].guard.in_a_row) == 5


def test_nothing_is_a_spike_when_none_are_looked_for(params) -> None:
    _, states = train(params, [1.0] * 40 + [100.0], [1.0] * 41, spike_deviations=None)
    assert int(states[-1].guard.skipped) == 0


def test_ceilings_hold_from_the_first_step_on(params) -> None:
    _, states = train(params, [7.0, 5.0, 5.0], [1.0, 3.0, 1.0], max_loss=6.0, max_grad_norm=2.0)
    assert [int(state.guard.skipped) for state in states[1:]] == [1, 2, 2]


def test_values_that_hardly_differ_are_no_spikes(params) -> None:
    _, states = train(params, [2.0] * 40 + [2.1, 2.5], [1.0] * 42, spike_deviations=20)
    assert [int(state.guard.skipped) for state in states[-2:]] == [0, 1]  # 1 % of the median is the least deviation
