"""Tokens to places and back: against index arithmetic in numpy, and against JAX's own gradient of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.ops.permute import collect, limited_places, sorted_places, spread

N, K, E, D = 7, 2, 4, 3
GROUPS = np.array([[0, 2], [2, 1], [2, 0], [4, 2], [2, 4], [0, 2], [2, 0]])
"""4 (= E): none of these groups."""


def test_sorted_places_keep_the_order_of_tokens_in_a_group():
    groups = GROUPS % E
    choice_M, places_nk, sizes_E = sorted_places(jnp.asarray(groups), E)
    flat = groups.reshape(-1)
    np.testing.assert_array_equal(choice_M, np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(np.asarray(choice_M)[np.asarray(places_nk).reshape(-1)], np.arange(N * K))
    np.testing.assert_array_equal(sizes_E, np.bincount(flat, minlength=E))


def test_limited_places_take_the_first_and_count_what_is_taken():
    taken = np.array([0, 0, 1, 0])
    choice_M, places_nk = limited_places(jnp.asarray(GROUPS), E, 3, jnp.asarray(taken))
    used, expected = taken.copy(), []
    held = np.full((E, 3), N * K)
    for choice, group in enumerate(GROUPS.reshape(-1)):
        if group < E and used[group] < 3:
            place = used[group] - taken[group]
            held[group, place] = choice
            expected.append(group * 3 + place)
        else:
            expected.append(E * 3)
        if group < E:
            used[group] += 1
    np.testing.assert_array_equal(places_nk, np.reshape(expected, (N, K)))
    np.testing.assert_array_equal(choice_M, held.reshape(-1))
    assert np.sum(np.asarray(places_nk) == E * 3) == 8


@pytest.mark.parametrize("full", [False, True])
def test_each_is_the_gradient_of_the_other(full):
    if full:
        choice_M, places_nk, _ = sorted_places(jnp.asarray(GROUPS % E), E)
    else:
        choice_M, places_nk = limited_places(jnp.asarray(GROUPS), E, 3)
    token_M = choice_M // K
    x_nD = jax.random.normal(jax.random.key(0), (N, D))
    y_MD = jax.random.normal(jax.random.key(1), (token_M.size, D))

    def plain(x):
        return jnp.concatenate([x, jnp.zeros((1, D))])[jnp.minimum(token_M, N)]

    def back(y):
        return jnp.concatenate([y, jnp.zeros((1, D))])[places_nk].sum(axis=1)

    for ours, theirs, at, cotangent in ((spread, plain, x_nD, y_MD), (collect, back, y_MD, x_nD)):
        value, pull = jax.vjp(lambda a, f=ours: f(a, token_M, places_nk, full=full), at)
        expected, expected_pull = jax.vjp(theirs, at)
        np.testing.assert_allclose(value, expected, atol=1e-6)
        np.testing.assert_allclose(pull(cotangent)[0], expected_pull(cotangent)[0], atol=1e-6)
