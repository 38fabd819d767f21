"""What the guard calls bad, against plain numpy, and that it then changes nothing."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from looplm.config.schema import Guard
from looplm.optim.guard import ENOUGH, LONG, OFTEN, WINDOW, guarded, limits, new_stage

GRADIENT = {"w": jnp.float32([0.5, -0.25, 0.0])}


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    return {"w": jnp.float32([1.0, -0.0, 2.0])}


def train(params: Any, losses: Any, norms: Any, tokens: Any = None, **config: Any) -> tuple[list[Any], list[Any]]:
    """Runs AdamW over steps with these losses, norms and counts of labels; returns parameters and states, the first
    ones too."""
    optimizer = guarded(optax.adamw(0.1, weight_decay=0.1), Guard(**config))

    @jax.jit
    def step(params: Any, state: Any, loss: jax.Array, norm: jax.Array, tokens: jax.Array) -> tuple[Any, Any]:
        gradient = jax.tree.map(lambda g: g + 0 * loss * norm, GRADIENT)  # not finite where they are not
        updates, state = optimizer.update(gradient, state, params, loss=loss, grad_norm=norm, tokens=tokens)
        return optax.apply_updates(params, updates), state

    all_params, states = [params], [optimizer.init(params)]
    for loss, norm, count in zip(losses, norms, [1] * len(losses) if tokens is None else tokens, strict=True):
        new, state = step(all_params[-1], states[-1], jnp.float32(loss), jnp.float32(norm), jnp.int32(count))
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


def test_a_value_at_its_ceiling_is_good(params) -> None:
    _, states = train(params, [6.0, 6.0, 6.1], [2.0, 2.1, 2.0], max_loss=6.0, max_grad_norm=2.0)
    assert made(states) == [True, False, False]


def test_values_that_hardly_differ_are_no_spikes(params) -> None:
    _, states = train(params, [2.0] * 40 + [2.1, 2.5], [1.0] * 42, spike_deviations=20)
    assert [int(state.guard.skipped) for state in states[-2:]] == [0, 1]  # 1 % of the median is the least deviation


def made(states: list[Any]) -> list[bool]:
    """Which updates were made."""
    counts = [int(state.guard.num_good) for state in states]
    return [after > before for before, after in pairwise(counts)]


def test_a_step_without_a_label_is_as_if_it_had_not_been(params) -> None:
    """Nine of ten steps: their zeros are no good values, else every other one would be a spike after 32 of them."""
    losses, tokens = np.zeros(400), np.zeros(400, int)
    losses[::10], tokens[::10] = 3 + 0.1 * np.random.default_rng(0).normal(size=40), 7
    losses[5] = np.nan  # a forward pass may give anything where nothing is scored
    all_params, states = train(params, losses, losses, tokens)
    clean_params, clean_states = train(params, losses[::10], losses[::10])
    assert made(states) == (tokens > 0).tolist()
    assert bits((all_params[-1], states[-1].optimizer)) == bits((clean_params[-1], clean_states[-1].optimizer))
    assert bits(states[-1].guard._replace(unlabelled=0)) == bits(clean_states[-1].guard._replace(unlabelled=0))
    assert int(states[-1].guard.unlabelled) == 360


def test_steps_without_labels_do_not_end_a_row_of_bad_ones(params) -> None:
    _, states = train(params, [np.nan, 0.0, np.nan, 0.0, np.inf], [1.0] * 5, [1, 0, 1, 0, 1])
    assert [int(state.guard.in_a_row) for state in states[1:]] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("row", [0, 1])
def test_what_comes_again_and_again_is_hard_data(params, row: int) -> None:
    """High values between good ones: three are spikes, and of the others those of more than twice their height."""
    values = np.full(200, 0.1)
    values[50:200:10] = 5.0
    values[150] = 14.0
    pair = [values, np.ones(200)]
    _, states = train(params, *(pair if row == 0 else pair[::-1]))
    assert np.flatnonzero(~np.array(made(states))).tolist() == [50, 60, 70, 150]
    assert int(states[-1].guard.hard) == 15 - 4


def test_rare_spikes_stay_spikes(params) -> None:
    config, state = Guard(), train(params, [0.1] * 40, [1.0] * 40)[1][-1].guard
    often, rare = (
        state._replace(high_2H=jnp.full_like(state.high_2H, 5.0), high_at_2H=state.high_at_2H.at[:, -3:].set(40 - ago))
        for ago in (OFTEN - 1, OFTEN)
    )
    assert float(limits(often, config)[0]) == pytest.approx(2 * 5.0 - 0.1)
    assert float(limits(rare, config)[0]) < 1


def test_high_values_in_a_row_are_no_hard_data(params) -> None:
    values = np.full(100, 0.1)
    values[[40, 45, 50]] = 5.0
    values[60:75] = 5.0
    _, states = train(params, values, np.ones(100), stop_after=100)
    bad = np.flatnonzero(~np.array(made(states)))
    assert bad.tolist() == [40, 45, 50, *range(60 + LONG, 75)]


def test_a_level_that_stays_is_taken_once_a_window(params) -> None:
    values = np.concatenate([np.full(50, 0.1), np.full(WINDOW + 4, 5.0), np.full(20, 90.0), np.full(9, 2000.0)])
    _, states = train(params, values, np.ones(len(values)), stop_after=10)
    guard = [state.guard for state in states[1:]]
    first, second, third = 50, 50 + WINDOW + 4, 70 + WINDOW + 4
    assert not any(made(states)[first : first + 9])
    assert all(made(states)[first + 9 : second])
    # 5.0 was the level of 125 updates: less than a window.
    assert not any(made(states)[second:])
    assert int(guard[third - 1].in_a_row) == 20
    assert [int(guard[i].new_levels) for i in (first + 8, first + 9, -1)] == [0, 1, 1]
    assert float(limits(guard[first + 9], Guard())[0]) == np.inf


def test_of_a_new_level_its_own_values_alone_are_remembered(params) -> None:
    level = 5 + 0.1 * np.random.default_rng(0).normal(size=ENOUGH + 9)
    _, states = train(params, np.concatenate([np.full(WINDOW, 0.1), level]), np.ones(WINDOW + ENOUGH + 9))
    assert not any(made(states)[WINDOW : WINDOW + 9])
    assert all(made(states)[WINDOW + 9 :])
    assert float(limits(states[-2].guard, Guard())[0]) == np.inf
    assert float(limits(states[-1].guard, Guard())[0]) == pytest.approx(
        expected_limit(level[9:].tolist(), 20), rel=1e-5
    )


@pytest.mark.parametrize("config", [{"rewinds": 1}, {"max_loss": 4.0}], ids=["rewinds", "ceiling"])
def test_no_level_is_taken_where_a_rewind_is_wanted_or_above_a_ceiling(params, config: dict[str, Any]) -> None:
    _, states = train(params, [0.1] * 40 + [5.0] * 30, [1.0] * 70, **config)
    assert int(states[-1].guard.in_a_row) == 30


def test_values_that_are_not_finite_are_no_level(params) -> None:
    values = [0.1] * 40 + [np.nan] * 9 + [5.0] + [np.nan] * 20
    _, states = train(params, values, [1.0] * 70)
    assert int(states[-1].guard.in_a_row) == 30


def test_a_new_stage_begins_as_a_run_does(params) -> None:
    _, states = train(params, [0.1] * 60, [1.0] * 60)
    guard = new_stage(states[-1].guard)
    assert np.all(np.isinf(limits(guard, Guard())))
    assert int(guard.num_good) == 60
    state, optimizer = states[-1]._replace(guard=guard), guarded(optax.adam(0.1), Guard())
    state = state._replace(optimizer=optax.adam(0.1).init(params))
    for loss in 5 + 0.01 * np.arange(ENOUGH):
        _, state = optimizer.update(GRADIENT, state, params, loss=loss, grad_norm=jnp.ones(()))
    assert int(state.guard.skipped) == 0
    wanted = expected_limit((5 + 0.01 * np.arange(ENOUGH)).tolist(), 20)
    assert float(limits(state.guard, Guard())[0]) == pytest.approx(wanted, rel=1e-5)
