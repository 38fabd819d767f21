"""Dims of size one: a micro-batch of one sequence, one key/value head, one device. Steps equal those without a mesh."""

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from looplm.config.schema import Run
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.metrics.step import StepOutput
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import MESH_AXES
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.step import build_train_step

NUM_STEPS = 2
ONE_SEQUENCE = {"data.batch_tokens": 16, "optim.optimizer.eps": 1e-4, "num_steps": NUM_STEPS}
MULTI_QUERY = {"model.num_heads": 4, "model.num_kv_heads": 1}
EXPERTS = {
    "model.feed_forward": {
        "kind": "moe",
        "num_experts": 4,
        "experts_per_token": 2,
        "expert_dim": 8,
        "balance": {"bias_rate": 0.01, "auxiliary_weight": 0.1, "entropy_weight": 0.1, "z_loss_weight": 0.1},
    },
    "model.exit_gate": None,
    "objective": "final",
}
SETTINGS = {
    "one-sequence": ONE_SEQUENCE,
    "one-sequence-and-key-value-head": ONE_SEQUENCE | MULTI_QUERY,
    "one-key-value-head": {"optim.optimizer.eps": 1e-4, "num_steps": NUM_STEPS} | MULTI_QUERY,
    "accumulated-down-to-one": ONE_SEQUENCE | MULTI_QUERY | {"data.batch_tokens": 32, "data.accumulation_steps": 2},
    "experts-with-one-sequence": ONE_SEQUENCE | EXPERTS,
    "limited-experts-with-one-sequence": ONE_SEQUENCE | {
        "model.feed_forward": EXPERTS["model.feed_forward"] | {"capacity_factor": 1.0},
        "model.attention": {"kind": "mixture", "num_experts": 2, "experts_per_token": 1, "entropy_weight": 0.1},
        "loop.depth": {"kind": "uniform", "max_loops": 3},
        "loop.depth_per": "sequence",
    },
}  # fmt: skip
ALONE = {f"mesh.{axis}": 1 for axis in MESH_AXES}


def trained(run: Run, *, with_mesh: bool = True) -> dict[str, np.ndarray]:
    """Metrics of every step and parameters after the last, by name."""
    num_devices = math.prod(getattr(run.mesh, axis) for axis in MESH_AXES)
    program = Program(run, build_mesh(run.mesh, jax.devices()[:num_devices]))
    batches = train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0)
    state, step = (program.create_state(), program.compile()) if with_mesh else without_mesh(program)
    numbers: dict[str, Any] = {}
    for index, batch in enumerate(islice(batches, NUM_STEPS)):
        state, numbers[f"step {index}"] = step(state, batch, index)
    leaves = tree_leaves_with_path(jax.device_get(numbers | {"params": state.params}))
    return {keystr(path): leaf for path, leaf in leaves}


def without_mesh(program: Program) -> tuple[TrainState, Callable]:
    """The same step as plain JAX: no mesh is set, so no array has a layout."""
    run, layout = program.run, program.batch
    train_step = jax.jit(build_train_step(run, program.lm, program.optimizer, program.depths, dtype=program.dtype))
    params = program.lm.init(jax.random.key(run.seed))

    def step(state: TrainState, rows: Mapping[str, np.ndarray], index: int) -> tuple[TrainState, StepOutput]:
        drawn = program.depths.draw(index)
        batch = jax.tree.map(np.asarray, layout.place(rows, drawn))
        return train_step(state, batch, np.asarray(layout.place_drawn(drawn)))

    return TrainState(jnp.int32(0), params, program.optimizer.init(params)), step


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_steps_equal_those_without_a_mesh(tiny_run: Callable[..., Run], settings: dict[str, Any]) -> None:
    run = tiny_run(**settings | ALONE)
    expected = trained(run, with_mesh=False)
    rows = run.data.batch_tokens // run.data.sequence_length // run.data.accumulation_steps
    for mesh in ({}, {"mesh.context": 8} if rows == 1 else {"mesh.data": 2, "mesh.fsdp": 4}):
        found = trained(tiny_run(**settings | ALONE | mesh))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5, err_msg=f"{mesh}: {name}")
