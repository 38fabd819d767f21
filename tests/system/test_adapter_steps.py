"""Steps of adapters: the same on any mesh, and nothing but the adapter has a gradient, a state, or moves."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import jax
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from looplm.config.schema import Run
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import MESH_AXES
from looplm.train.program import Program

NUM_STEPS = 3
ALONE = {f"mesh.{axis}": 1 for axis in MESH_AXES}
SHARED = {
    "num_steps": NUM_STEPS,
    "optim.learning_rate": 1e-3,
    "optim.optimizer.eps": 1e-4,  # else Adam makes a step of rounding errors where the gradient is nearly zero
    "model.dim": 32,
    "model.num_heads": 4,
    "model.prelude_layers": 1,
    "model.injection": "concat",
    "model.adapter": {"rank": 2, "alpha": 2.0, "targets": ["attention", "feed_forward", "injection"]},
}
LEFT_OUT = SHARED | {"model.adapter": SHARED["model.adapter"] | {"dropout": 0.25, "loop_dropout": 0.5}}
OF_LOOPS = LEFT_OUT | {
    "model.adapter": LEFT_OUT["model.adapter"] | {"loops": 2},
    "loop.depth": {"kind": "uniform", "max_loops": 3},
    "data.accumulation_steps": 2,
    "model.tie_embeddings": True,
}
OF_EXPERTS = SHARED | {
    "model.attention": {"kind": "mixture", "num_experts": 3, "experts_per_token": 2},
    "model.feed_forward": {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 8, "shared_dim": 8},
    "model.adapter": SHARED["model.adapter"] | {"loops": 2},
}


def trained(run: Run) -> dict[str, np.ndarray]:
    """Metrics of every step and the whole state after the last, by name."""
    program = Program(run, build_mesh(run.mesh, jax.devices()[: math.prod(getattr(run.mesh, a) for a in MESH_AXES)]))
    batches = train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0)
    state, step = program.create_state(), program.compile()
    numbers: dict[str, Any] = {"before": jax.device_get(state.params)}
    for index, batch in enumerate(islice(batches, NUM_STEPS)):
        state, numbers[f"step {index}"] = step(state, batch, index)
    leaves = tree_leaves_with_path(jax.device_get(numbers | {"params": state.params, "opt_state": state.opt_state}))
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "mesh"),
    [
        (LEFT_OUT, {"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2}),
        (OF_LOOPS, {"mesh.data": 2, "mesh.fsdp": 2}),
        (OF_LOOPS, {"mesh.fsdp": 2, "mesh.tensor": 2, "sharding.gather": "per_layer"}),
        (OF_EXPERTS, {"mesh.fsdp": 2, "mesh.expert": 2, "mesh.tensor": 2}),
    ],
)
def test_steps_do_not_depend_on_the_mesh(
    tiny_run: Callable[..., Run], settings: dict[str, Any], mesh: dict[str, Any]
) -> None:
    expected = trained(tiny_run(**settings | ALONE))
    found = trained(tiny_run(**settings | ALONE | mesh))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    moved = {
        name.removeprefix("params.")
        for name in expected
        if name.startswith("params.") and np.any(expected[name] != expected[name.replace("params.", "before.", 1)])
    }
    assert moved == {
        name.removeprefix("params.") for name in expected if ".adapter." in name and name.startswith("params.")
    }
