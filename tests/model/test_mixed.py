"""Stacks of several kinds of layers against a Python loop over the layers: order, parameters, what they report."""

import jax.numpy as jnp
import numpy as np
import pytest

from looplm.model.mixed import places_among, plan, rows_at, scan_layers
from looplm.model.report import Report

PATTERNS = {
    "first": (True, False, False),
    "runs": (False, False, True, True, False),
    "alternating": (False, True) * 3,
    "two_of_three": (True, False, True) * 2,
    "broken_period": (True, False, True, False, False),
    "odd": (True, False, True, False, True),
    "alike": (False,) * 4,
    "single": (True,),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_layers_run_in_order(name):
    """Against a loop over the layers; one kind reports, both do something of their own."""
    is_dense = PATTERNS[name]
    generator = np.random.default_rng(0)
    rows = places_among([not dense for dense in is_dense]), places_among(is_dense)
    weights = [generator.normal(size=(max(is_dense.count(dense), 1), 1)) for dense in (False, True)]
    x, own = generator.normal(), generator.normal(size=(len(is_dense), 2))

    def data(layers):
        dense = is_dense[layers[0]]
        return rows_at(jnp.float32(weights[dense]), [rows[dense][i] for i in layers]), rows_at(jnp.float32(own), layers)

    def apply(dense, x, place):
        weight, own = place
        auxiliary = None if dense else weight - x
        return (jnp.cos if dense else jnp.sin)(weight[0] * x + own[0]), Report(
            auxiliary_B=auxiliary, memory_BSD=own + x
        )

    out, report = scan_layers(apply, jnp.float32(x), is_dense, data, unroll=False)

    auxiliary, memory = [], []
    for layer, dense in enumerate(is_dense):
        weight = weights[dense][rows[dense][layer]]
        memory.append(own[layer] + x)
        if not dense:
            auxiliary.append(weight - x)
        x = (np.cos if dense else np.sin)(weight[0] * x + own[layer][0])
    np.testing.assert_allclose(out, x, atol=1e-5)
    np.testing.assert_allclose(report.memory_BSD, np.moveaxis(memory, 0, 1), atol=1e-5)
    if auxiliary:
        np.testing.assert_allclose(report.auxiliary_B, np.moveaxis(auxiliary, 0, 1), atol=1e-5)
    else:
        assert report.auxiliary_B is None


def test_the_plan_writes_as_few_layers_as_it_can():
    assert plan(PATTERNS["alternating"]) == (((False, True), 3),)
    assert plan(PATTERNS["two_of_three"]) == (((True, False, True), 2),)
    assert plan(PATTERNS["first"]) == (((True,), 1), ((False,), 2))
    assert plan(PATTERNS["odd"]) == (((True,), 1), ((False, True), 2))
    assert plan(PATTERNS["alike"]) == (((False,), 4),)
