"""The average of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from looplm.config.schema import Optim
from looplm.optim.build import build_optimizer
from looplm.optim.ema import abstract_ema, ema_params

DECAY = 0.9


@pytest.fixture(scope="module")
def states(lm, train):
    return train(build_optimizer(Optim(learning_rate=0.1, ema_decay=DECAY), lm, 10), 5)


def test_it_follows_the_recurrence(states, params, by_path) -> None:
    expected = by_path(params)
    for trained, _ in states:
        expected = {path: DECAY * expected[path] + (1 - DECAY) * leaf for path, leaf in by_path(trained).items()}
    averaged = by_path(ema_params(states[-1][1]))
    assert averaged.keys() == expected.keys()
    for path, leaf in averaged.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_it_is_found_in_a_state_that_was_taken_apart_and_put_together(states) -> None:
    opt_state = states[-1][1]
    leaves, structure = jax.tree.flatten(opt_state)
    found = ema_params(jax.tree.unflatten(structure, leaves))
    jax.tree.map(np.testing.assert_array_equal, found, ema_params(opt_state))


def test_it_starts_as_a_copy_of_the_parameters(lm, params) -> None:
    params = jax.tree.map(jnp.asarray, params)
    averaged = ema_params(build_optimizer(Optim(learning_rate=0.1, ema_decay=DECAY), lm, 10).init(params))
    jax.tree.map(np.testing.assert_array_equal, averaged, params)
    shared = jax.tree.map(lambda a, b: a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer(), averaged, params)
    assert not any(jax.tree.leaves(shared)), "a step that donates its state would donate a buffer twice"


def test_without_it_there_is_none(params) -> None:
    assert ema_params(optax.adamw(0.1).init(params)) is None


def test_frozen_parameters_have_no_average(lm, params, train) -> None:
    optimizer = build_optimizer(Optim(learning_rate=0.1, ema_decay=DECAY), lm, 10, frozenset({"gate"}))
    averaged = ema_params(train(optimizer, 2)[-1][1])
    assert averaged.keys() == {"gate"}
    assert np.all(averaged["gate"]["kernel"] != params["gate"]["kernel"])


def test_of_a_stored_state_the_average_alone_is_read(lm) -> None:
    optimizer = build_optimizer(Optim(learning_rate=0.1, ema_decay=DECAY), lm, 10)
    wanted = jax.tree.map(lambda leaf: leaf.shape, lm.shapes)
    abstract = abstract_ema(optimizer, lm.shapes, wanted)
    assert ema_params(abstract) is wanted
    (average,) = jax.tree.leaves(wanted, is_leaf=lambda node: node is wanted)
    others = [leaf for leaf in jax.tree.leaves(abstract, is_leaf=lambda node: node is average) if leaf is not average]
    assert len(others) > len(jax.tree.leaves(lm.shapes))
    assert all(leaf is ... for leaf in others)
