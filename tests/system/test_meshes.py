"""Training does not depend on the mesh, nor on how a batch is cut into micro-batches."""

import math
from collections.abc import Callable
from itertools import combinations, islice
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from looplm.config.schema import Run
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.data.window import PADDING
from looplm.metrics.step import StepOutput
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program

NUM_STEPS = 5
MODEL = {
    "num_steps": NUM_STEPS,
    "optim.learning_rate": 1e-3,
    "optim.optimizer.eps": 1e-4,  # else Adam makes a step of rounding errors where the gradient is nearly zero
    "model.dim": 32,
    "model.num_heads": 8,
    "model.num_kv_heads": 4,
    "model.prelude_layers": 1,
    "model.norm_placement": "sandwich",
    "model.norm_at_loop_end": True,
    "model.injection": "concat",
    "model.qk_bias": True,
    "model.qk_norm": True,
    "model.positions": "relative",
    "model.conditioning": {"kind": "vector", "loops": 2},
    "model.tie_embeddings": True,
    "loop.depth": {"kind": "uniform", "max_loops": 3},
}
"""Parameters of every kind, and steps of different depths."""
CONTRACTING = {
    "model.injection": "diagonal",
    "model.positions": {"kind": "learned", "length": 16},
    "model.conditioning": "none",
    "model.exit_gate": None,
    "objective": "final",
    "loop.depth_per": "sequence",
}
TELLING = (("fsdp", "context", "tensor"),)
"""Run by default; all the others are slow tests."""
AXES = ("replica", "data", "fsdp", "context", "tensor")
ALONE = {f"mesh.{axis}": 1 for axis in (*AXES, "expert")}
WITH_EXPERTS = {
    "num_steps": NUM_STEPS,
    "data.train": {"kind": "modular", "operations": 2, "modulus": 5},
    "data.validation": None,
    "optim.learning_rate": 1e-3,
    "optim.optimizer.eps": 1e-4,
    "model.block_layers": 2,
    "model.feed_forward": {
        "kind": "moe",
        "num_experts": 8,
        "experts_per_token": 2,
        "expert_dim": 8,
        "shared_dim": 8,
        "loop_biases": 2,
        "dense_layers": [1],
        "balance": {"bias_rate": 0.05, "auxiliary_weight": 0.1, "entropy_weight": 0.1, "z_loss_weight": 0.01},
    },
    "model.attention": {"kind": "mixture", "num_experts": 4, "experts_per_token": 2, "entropy_weight": 0.1},
    "model.norm": "layer",
    "model.head_bias": True,
    "model.norm_placement": "peri",
    "loop.depth": {"kind": "uniform", "max_loops": 3},
}


class Trained(NamedTuple):
    steps: list[StepOutput]
    params: Any


def train(run: Run) -> Trained:
    """A few steps on so many devices as the mesh asks for."""
    num_devices = math.prod(getattr(run.mesh, axis) for axis in (*AXES, "expert"))
    program = Program(run, build_mesh(run.mesh, jax.devices()[:num_devices]))
    state, step = program.create_state(), program.compile()
    batches = train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0)
    steps = []
    for index, batch in enumerate(islice(batches, NUM_STEPS)):
        state, output = step(state, batch, index)
        steps.append(jax.device_get(output))
    return Trained(steps, jax.device_get(state.params))


def assert_same(trained: Trained, expected: Trained) -> None:
    # Adam hides a gradient of a wrong size; its norm does not.
    numbers = zip(tree_leaves_with_path(trained.steps), jax.tree.leaves(expected.steps), strict=True)
    for (path, found), wanted in numbers:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=keystr(path))
    for path, leaf in tree_leaves_with_path(trained.params):
        wanted = expected.params
        for key in path:
            wanted = wanted[key.key]
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=1e-5, err_msg=keystr(path))


@pytest.fixture(scope="module")
def on_one_device(tiny_run: Callable[..., Run]) -> Trained:
    return train(tiny_run(**MODEL, **ALONE))


def test_there_is_something_to_compare(on_one_device: Trained) -> None:
    means = [step.means for step in on_one_device.steps]
    losses = [row["train/loss"] for row in means]
    assert losses[-1] < losses[0]
    assert len({row["loop/state_norm"].item() for row in means}) == NUM_STEPS


@pytest.mark.parametrize(
    "axes",
    [pytest.param(a, marks=[] if a in TELLING else pytest.mark.slow) for a in combinations(AXES, 3)],
    ids="-".join,
)
def test_three_axes(on_one_device: Trained, tiny_run: Callable[..., Run], axes: tuple[str, ...]) -> None:
    assert_same(train(tiny_run(**MODEL, **ALONE | {f"mesh.{axis}": 2 for axis in axes})), on_one_device)


@pytest.mark.slow
@pytest.mark.parametrize("axes", list(combinations(AXES, 2)), ids="-".join)
def test_two_axes(on_one_device: Trained, tiny_run: Callable[..., Run], axes: tuple[str, str]) -> None:
    sizes = {f"mesh.{axis}": size for axis, size in zip(axes, (2, 4), strict=True)}
    assert_same(train(tiny_run(**MODEL, **ALONE | sizes)), on_one_device)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mesh.fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"mesh.fsdp": 8, "sharding.gather": "per_layer"}, marks=pytest.mark.slow),
        pytest.param({"mesh.fsdp": 4, "mesh.tensor": 2, "sharding.gather": "per_layer"}, marks=pytest.mark.slow),
        pytest.param({"mesh.fsdp": 4, "mesh.tensor": 2, "data.accumulation_steps": 2}, marks=pytest.mark.slow),
    ],
    ids=["fsdp", "per-layer", "per-layer-tensor", "accumulated"],
)
def test_one_axis_and_other_ways(on_one_device: Trained, tiny_run: Callable[..., Run], changes: dict) -> None:
    assert_same(train(tiny_run(**MODEL, **ALONE | changes)), on_one_device)


@pytest.mark.slow
def test_depth_by_sequence_and_a_contracting_injection(tiny_run: Callable[..., Run]) -> None:
    alone, split = {**MODEL, **CONTRACTING, **ALONE}, {"mesh.data": 2, "mesh.context": 2, "mesh.tensor": 2}
    assert_same(train(tiny_run(**alone | split)), train(tiny_run(**alone)))


@pytest.fixture(scope="module")
def experts_on_one_device(tiny_run: Callable[..., Run]) -> Trained:
    return train(tiny_run(**WITH_EXPERTS | ALONE))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mesh.expert": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, marks=pytest.mark.slow),
        pytest.param({"mesh.expert": 4, "mesh.context": 2}, marks=pytest.mark.slow),
        pytest.param({"mesh.expert": 4, "mesh.fsdp": 2, "sharding.gather": "per_layer"}, marks=pytest.mark.slow),
        pytest.param({"mesh.expert": 2, "mesh.data": 2, "data.accumulation_steps": 2}, marks=pytest.mark.slow),
    ],
    ids=["fsdp-tensor", "context", "per-layer", "accumulated"],
)
def test_experts_over_devices(experts_on_one_device: Trained, tiny_run: Callable[..., Run], changes: dict) -> None:
    assert_same(train(tiny_run(**WITH_EXPERTS | ALONE | changes)), experts_on_one_device)


@pytest.mark.slow
@pytest.mark.parametrize("gather", ["once", "per_layer"])
def test_parts_of_every_loop_over_devices(tiny_run: Callable[..., Run], gather: str) -> None:
    alone = WITH_EXPERTS | ALONE | {"model.attention": "dense", "model.attention_loops": 2, "model.norm_loops": 3}
    alone["model.feed_forward"] = WITH_EXPERTS["model.feed_forward"] | {"loop_biases": 0, "router_loops": 2}
    split = {"mesh.expert": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "sharding.gather": gather}
    assert_same(train(tiny_run(**alone | split)), train(tiny_run(**alone)))


@pytest.mark.slow
def test_experts_are_used_and_their_biases_move(experts_on_one_device: Trained, tiny_run: Callable[..., Run]) -> None:
    trained, run = experts_on_one_device, tiny_run(**WITH_EXPERTS | ALONE)
    batches = train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0)
    blocks = [step.routers.moe["block"] for step in trained.steps]
    for routers, batch in zip(blocks, batches, strict=False):
        tokens = np.sum(batch["segments"] != PADDING)
        assert tokens < 8 * 16
        assert routers.dropped == 0
        assert set(routers.load_TLE.sum(axis=-1).reshape(-1)) - {0} == {2 * tokens}  # 0 in loops that did not run
    # By the rule, from what was logged: loop t has row t - 1 of the table, the last one also all later loops.
    bias_LTE = np.zeros((1, 2, 8), np.float32)
    for routers in blocks:
        ran = [load_LE for load_LE in routers.load_TLE if load_LE.sum()]
        for rows, load_LE in ((0, ran[0]), (1, sum(ran[1:], start=np.zeros_like(ran[0])))):
            bias_LTE[:, rows] += 0.05 * np.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
    router = trained.params["core"]["block"]["layers"]["feed_forward"]["router"]
    np.testing.assert_allclose(router["balance_bias"], bias_LTE, atol=1e-6)
    assert np.any(router["loop_bias"] != 0)
