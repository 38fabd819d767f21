"""Stacks of two kinds of layers against a Python loop over the layers: order, parameters, caches, what is kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from looplm.model.mixed import in_units, units

PATTERNS = {
    "first": (True, False, False),
    "runs": (False, False, True, True, False),
    "alternating": (False, True) * 3,
    "two_of_three": (True, False, True) * 2,
    "broken_period": (True, False, True, False, False),
}


def experts(x, xs):
    (weight, cache, before), _ = xs
    return jnp.sin(weight * x + before), (cache + x, weight - x)


def dense(x, xs):
    (weight, cache, before), _ = xs
    assert before is None
    return jnp.cos(weight * x), (cache - x, None)


@pytest.mark.parametrize("name", PATTERNS)
def test_layers_run_in_order(name):
    is_dense = PATTERNS[name]
    generator = np.random.default_rng(0)
    count, num_dense = len(is_dense), sum(is_dense)
    weights = [generator.normal(size=(n, 1)) for n in (count - num_dense, num_dense)]
    x, cache, before = generator.normal(size=3), generator.normal(size=(count, 3)), generator.normal(size=(count, 3))
    before = before[: count - num_dense]
    out, (caches, routing) = in_units(
        (experts, dense), jnp.float32(x), tuple(map(jnp.float32, weights)), jnp.float32(cache), jnp.float32(before),
        units(is_dense), unroll=False,
    )  # fmt: skip

    seen, kept_caches, kept_routing = [0, 0], [], []
    for layer, kind in enumerate(is_dense):
        place, weight = seen[kind], weights[kind][seen[kind]]
        kept_caches.append(cache[layer] - x if kind else cache[layer] + x)
        if not kind:
            kept_routing.append(weight - x)
        x = np.cos(weight * x) if kind else np.sin(weight * x + before[place])
        seen[kind] += 1
    np.testing.assert_allclose(out, x, atol=1e-5)
    np.testing.assert_allclose(caches, kept_caches, atol=1e-5)
    np.testing.assert_allclose(routing, kept_routing, atol=1e-5)


def test_a_pattern_that_repeats_is_scanned_by_its_period():
    assert units(PATTERNS["alternating"]) == (((False, True), 3),)
    assert units(PATTERNS["two_of_three"]) == (((True, False, True), 2),)
    assert units(PATTERNS["first"]) == (((True,), 1), ((False,), 2))
