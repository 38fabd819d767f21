"""First weights from elsewhere, with an adapter that is new: nothing is compiled but the draw."""

import jax
import numpy as np

import looplm
from looplm.sharding.mesh import build_mesh
from looplm.train.initial import check_source, weights_from
from looplm.train.program import Program


def test_a_new_adapter_is_drawn_beside_weights_from_a_run(finished_run, tiny_run) -> None:
    run = tiny_run(**{"model.adapter": {"rank": 2, "targets": ["feed_forward"]}, "seed": 5})
    program, said = Program(run, build_mesh(run.mesh)), []
    check_source(finished_run, program, None)
    params = jax.device_get(weights_from(finished_run, program, said.append))
    assert said == [f"starting from the weights of {finished_run} after step 3"]  # and no note of what is new
    jax.tree.map(lambda leaf, abstract: np.testing.assert_equal(leaf.shape, abstract.shape), params, program.lm.shapes)
    theirs = jax.tree_util.tree_leaves_with_path(looplm.load(finished_run).params)
    for path, value in theirs:
        found = params
        for key in path:
            found = found[key.key]
        np.testing.assert_array_equal(found, value)
    adapter = params["core"]["block"]["layers"]["feed_forward"]["up"]["adapter"]
    assert np.std(adapter["a"]) > 0.1
    assert not np.any(adapter["b"])
    assert len(jax.tree.leaves(params)) == len(theirs) + 6
