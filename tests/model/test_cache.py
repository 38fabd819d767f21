"""The cache of keys and values against dictionaries in Python."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from looplm.model.cache import Kept, KVCache, Visit

LAYERS, B, T, K, H, R = 2, 3, 5, 1, 2, 4


def empty(slots, own=0):
    zeros = jnp.zeros((slots, LAYERS, B, K, T, H))
    return KVCache(Kept(zeros), Kept(zeros), own)


def numbers(loop, layer, positions_BS):
    """A number for every loop, layer, row and position, as keys (B, S, K, H)."""
    rows_B1 = np.arange(B)[:, None]
    return jnp.broadcast_to(
        (1000 * (loop + 1) + 100 * layer + 10 * rows_B1 + positions_BS)[:, :, None, None], (*positions_BS.shape, K, H)
    )


def slot_of(loop, slots, own):
    """The first `own` loops have a slot each, the others take turns."""
    turns = itertools.cycle(range(own, slots))
    return [*range(own), *itertools.islice(turns, R)][loop]


@pytest.mark.parametrize(("slots", "own"), [(1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (3, 2), (3, 1)])
def test_a_loop_sees_the_latest_loop_of_its_slot(slots, own):
    """Tokens leave after different loops; what every loop of the next token finds is what the definition says."""
    exit_B = np.array([0, 3, 1])
    positions_B1 = np.full((B, 1), 2)
    cache, last = empty(slots, own), {}
    for loop in range(R):
        left_B1 = jnp.asarray(loop > exit_B)[:, None]
        for layer in range(LAYERS):
            visit = Visit(cache.slot(jnp.array([loop])), jnp.int32(layer))
            keys = numbers(loop, layer, positions_B1)
            _, _, cache = cache.write(keys, -keys, visit, jnp.asarray(positions_B1), left_B1)
            for row in range(B):
                # A token that has left is in this loop as it was in its last one.
                last[slot_of(loop, slots, own), layer, row] = float(
                    numbers(min(loop, exit_B[row]), layer, positions_B1)[row, 0, 0, 0]
                )
    cache = cache.fill(jnp.asarray(exit_B)[:, None], jnp.asarray(positions_B1), R)
    for (slot, layer, row), number in last.items():
        np.testing.assert_array_equal(cache.keys.numbers[slot, layer, row, :, 2], number)
        np.testing.assert_array_equal(cache.values.numbers[slot, layer, row, :, 2], -number)
    untouched = np.delete(np.asarray(cache.keys.numbers), 2, axis=4)
    assert not untouched.any()


def test_rows_at_different_loops_write_and_see_their_own_slots():
    cache = empty(R)
    number_B, positions_B1 = jnp.array([0, 3, 1]), np.array([[0], [4], [2]])
    keys = numbers(0, 1, positions_B1)
    seen, _, cache = cache.write(keys, keys, Visit(cache.slot(number_B), jnp.int32(1)), jnp.asarray(positions_B1))
    for row, (loop, position) in enumerate(zip(number_B, positions_B1[:, 0], strict=True)):
        np.testing.assert_array_equal(cache.keys.numbers[loop, 1, row, :, position], keys[row, 0])
        np.testing.assert_array_equal(seen[row], cache.keys.numbers[loop, 1, row])
    assert np.count_nonzero(cache.keys.numbers) == B * K * H
