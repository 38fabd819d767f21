"""What the compiled step sends between devices: weights gathered once, gradients reduced once, at any depth."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from looplm.config.schema import Mesh
from looplm.model.functional import FunctionalLM
from looplm.optim.build import build_optimizer
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import BATCH_AXES
from looplm.train.depth import DepthSchedule
from looplm.train.state import abstract_state
from looplm.train.step import build_train_step

COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"(f32|bf16|s32|pred|u32)\[([\d,]*)\]")


def collectives(run, mesh_config):
    """[(kind, inside a loop?, numbers)] of the compiled train step."""
    mesh, lm = build_mesh(mesh_config), FunctionalLM(run.model)
    optimizer = build_optimizer(run.optim, lm, run.num_steps)
    step = build_train_step(run, lm, optimizer, DepthSchedule(run))
    steps, length = run.data.accumulation_steps, run.data.sequence_length
    shapes = dict.fromkeys(("tokens", "labels", "segments", "positions"), (steps, 8, length)) | {"sequence": (steps, 8)}
    batch = {
        name: jax.ShapeDtypeStruct(
            shape, np.int32, sharding=NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, *(None,) * (len(shape) - 2)))
        )
        for name, shape in shapes.items()
    }
    drawn = jax.ShapeDtypeStruct((2,), np.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        text = jax.jit(step).lower(abstract_state(lm, optimizer, mesh), batch, drawn).compile().as_text()
    found = []
    for line in text.splitlines():
        if match := COLLECTIVE.search(line):
            numbers = sum(
                int(np.prod([int(n) for n in dims.split(",") if n])) for _, dims in ARRAY.findall(match["shape"])
            )
            found.append((match["kind"], "/while/" in line, numbers))
    return found


def total(found, *kinds, in_loop):
    return sum(numbers for kind, inside, numbers in found if kind in kinds and inside == in_loop)


@pytest.fixture(scope="module")
def by_depth(tiny_run):
    def at(num_loops):
        run = tiny_run(**{"loop.num_loops": num_loops, "model.block_layers": 2, "data.accumulation_steps": 2})
        return collectives(run, Mesh(data=2, fsdp=4))

    return {num_loops: at(num_loops) for num_loops in (1, 8)}


def test_inside_loops_only_the_sums_of_the_metrics_are_sent(by_depth):
    """A handful of numbers per micro-batch; no weight, gradient or activation."""
    assert all(numbers <= 32 for _, inside, numbers in by_depth[8] if inside)


def test_bytes_do_not_depend_on_the_number_of_loops(by_depth):
    for kinds in (("all-gather",), ("all-reduce", "reduce-scatter")):
        once, eight = (total(by_depth[r], *kinds, in_loop=False) for r in (1, 8))
        assert once > 0
        assert eight == pytest.approx(once, rel=0.05)
