"""What a step draws, counts and leaves alone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from looplm.config.schema import Balance, MoE, NormalState, Run
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.data.window import IGNORED
from looplm.metrics.step import StepOutput
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.step import HEADS_PURPOSE, STATE_PURPOSE, step_key

RATE = 0.25


class Setting(NamedTuple):
    run: Run
    state: TrainState
    batch: dict[str, np.ndarray]
    step: Callable[[TrainState, dict[str, np.ndarray], int], tuple[TrainState, StepOutput]]
    """Does not take the state."""


@pytest.fixture(scope="module")
def setting(tiny_run: Callable[..., Run]) -> Setting:
    """A state that begins with noise, experts with a bias that a rule moves, two micro-batches."""
    moe = MoE(num_experts=4, experts_per_token=1, expert_dim=8, loop_biases=2, balance=Balance(bias_rate=RATE))
    run = tiny_run(
        **{
            "model.state_init": NormalState(std=1.0), "model.feed_forward": moe, "data.accumulation_steps": 2,
            "optim.schedule.warmup_steps": 4, "num_steps": 20,
        }
    )  # fmt: skip
    return set_up(run)


@pytest.fixture(scope="module")
def accumulated(tiny_run: Callable[..., Run]) -> Setting:
    """Two micro-batches of four rows, without experts, whose losses count every token."""
    return set_up(tiny_run(**{"data.accumulation_steps": 2, "optim.optimizer.eps": 1e-4}))


@pytest.fixture(scope="module")
def alone(tiny_run: Callable[..., Run]) -> Setting:
    """Half of that batch as one."""
    return set_up(tiny_run(**{"data.batch_tokens": 64, "optim.optimizer.eps": 1e-4}))


def set_up(run: Run) -> Setting:
    program = Program(run, build_mesh(run.mesh, jax.devices()[:1]))
    compiled = program.compile()
    batch = next(train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0))

    def step(state, rows, index):
        return compiled(jax.tree.map(jnp.copy, state), rows, index)

    return Setting(run, program.create_state(), batch, step)


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_every_step_draws_anew_and_the_same_again(setting: Setting) -> None:
    later = replace(setting.state, step=setting.state.step + 1)
    first, again, second = (setting.step(s, setting.batch, 0)[1] for s in (setting.state, setting.state, later))
    assert bits(first) == bits(again)
    assert first.means["train/loss"] != second.means["train/loss"]


def test_no_two_streams_of_random_numbers_are_the_same() -> None:
    places = [
        (seed, purpose, step) for seed in (0, 1) for purpose in (STATE_PURPOSE, HEADS_PURPOSE) for step in (0, 1, 7)
    ]
    keys = [np.asarray(jax.random.key_data(step_key(*place[:2], jnp.int32(place[2])))).tolist() for place in places]
    assert all(a != b for a, b in combinations(keys, 2))


def balance_bias(state: TrainState) -> np.ndarray:
    return np.asarray(state.params["core"]["block"]["layers"]["feed_forward"]["router"]["balance_bias"])


def test_biases_of_routers_move_by_the_load_of_all_micro_batches(setting: Setting) -> None:
    after, output = setting.step(setting.state, setting.batch, 0)
    load_TLE = np.asarray(output.routers.moe["block"].load_TLE)
    load_LWE = np.stack([load_TLE[0], load_TLE[1:].sum(axis=0)], axis=1)  # the first loop has a bias of its own
    moved_LWE = (balance_bias(after) - balance_bias(setting.state)).reshape(load_LWE.shape)
    np.testing.assert_array_equal(moved_LWE, RATE * np.sign(load_LWE.mean(axis=-1, keepdims=True) - load_LWE))
    loops = setting.run.loop.num_loops
    assert load_TLE.sum() == loops * setting.batch["tokens"].size, "one expert for every token, loop and layer"


def test_an_update_that_is_not_made_moves_nothing(setting: Setting) -> None:
    head = setting.state.params["head"]
    spoilt = replace(setting.state, params=setting.state.params | {"head": head.at[0, 0].set(jnp.nan)})
    after, output = setting.step(spoilt, setting.batch, 0)
    assert output.numbers["optim/skipped_in_a_row"] == output.numbers["optim/skipped"] == 1
    assert bits((after.params, after.opt_state.optimizer)) == bits((spoilt.params, spoilt.opt_state.optimizer))
    assert after.step == 1


def test_the_numbers_of_a_step_are_those_of_its_batch(setting: Setting) -> None:
    """Tokens, the rate of warm-up by updates that were made, limits; the norm by the moments that it leaves behind."""
    after, output = setting.step(setting.state, setting.batch, 0)
    assert output.tokens == np.sum(setting.batch["labels"] >= 0)
    assert output.numbers["optim/learning_rate"] == pytest.approx(setting.run.optim.learning_rate / 4)
    assert np.isinf(output.numbers["optim/max_loss"])
    first_moment = optax.tree.get(after.opt_state.optimizer, "mu")
    clipped = min(1.0, setting.run.optim.clip_norm / float(output.means["train/grad_norm"]))
    expected = float(output.means["train/grad_norm"]) * clipped * (1 - setting.run.optim.optimizer.beta1)
    assert float(optax.tree.norm(first_moment)) == pytest.approx(expected, rel=1e-4)
    _, second = setting.step(after, setting.batch, 1)
    assert second.numbers["optim/learning_rate"] == pytest.approx(setting.run.optim.learning_rate / 2)


def test_the_gradient_norm_is_the_slope_of_the_objective(setting: Setting) -> None:
    """Along the gradient itself, by differences of the objective: nothing that an optimizer does hides its size."""
    after, output = setting.step(setting.state, setting.batch, 0)
    first_moment = optax.tree.get(after.opt_state.optimizer, "mu")
    unit = jax.tree.map(lambda leaf: leaf / optax.tree.norm(first_moment), first_moment)
    ahead, behind = (
        replace(setting.state, params=jax.tree.map(lambda p, u, h=h: p + h * u, setting.state.params, unit))
        for h in (1e-3, -1e-3)
    )
    objective = [float(setting.step(state, setting.batch, 0)[1].means["train/objective"]) for state in (ahead, behind)]
    assert (objective[0] - objective[1]) / 2e-3 == pytest.approx(float(output.means["train/grad_norm"]), rel=0.02)


def test_numbers_of_loops_and_experts_are_among_those_of_a_step(setting: Setting) -> None:
    _, output = setting.step(setting.state, setting.batch, 0)
    assert output.routers.moe["block"].dropped == 0
    assert -1 <= output.means["loop/update_cosine"] <= 1
    assert output.loops.loss_R.shape == (setting.run.loop.num_loops,)
    assert output.means["train/loss"] == pytest.approx(float(output.loops.loss_R[-1]), rel=1e-5)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(0, 8, 2)], ids=["a micro-batch", "rows of both"])
def test_rows_without_a_label_change_nothing_of_a_step(accumulated: Setting, alone: Setting, rows: slice) -> None:
    """The step is that over the rows with labels, also where one micro-batch has none of them."""
    labels = np.full_like(accumulated.batch["labels"], IGNORED)
    labels[rows] = accumulated.batch["labels"][rows]
    after, output = accumulated.step(accumulated.state, accumulated.batch | {"labels": labels}, 0)
    labelled = {name: leaf[rows] for name, leaf in accumulated.batch.items()}
    wanted, expected = alone.step(accumulated.state, labelled, 0)
    assert output.tokens == expected.tokens
    for name in ("train/loss", "train/objective", "train/grad_norm"):
        np.testing.assert_allclose(output.means[name], expected.means[name], rtol=1e-5, err_msg=name)
    for found, value in zip(*map(jax.tree.leaves, (after.params, wanted.params)), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_label_changes_nothing_and_is_counted(accumulated: Setting) -> None:
    labels = np.full_like(accumulated.batch["labels"], IGNORED)
    after, output = accumulated.step(accumulated.state, accumulated.batch | {"labels": labels}, 0)
    assert bits((after.params, after.opt_state.optimizer)) == bits(
        (accumulated.state.params, accumulated.state.opt_state.optimizer)
    )
    counted = {name: int(output.numbers[f"optim/{name}"]) for name in ("unlabelled", "skipped", "skipped_in_a_row")}
    assert counted == {"unlabelled": 1, "skipped": 0, "skipped_in_a_row": 0}
