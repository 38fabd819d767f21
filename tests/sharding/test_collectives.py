"""What the compiled step sends between devices: weights gathered once, gradients reduced once, at any depth."""

import pytest

from looplm.compile.collectives import collectives
from looplm.compile.hlo import Module
from looplm.config.schema import Mesh
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program

CHANGES = {
    "model.block_layers": 2,
    "model.conditioning": {"kind": "vector", "loops": 3},
    "data.accumulation_steps": 2,
    "data.batch_tokens": 256,
}
FEW_NUMBERS = 2**8
"""Bytes: the sums of the metrics of a micro-batch."""


@pytest.fixture(scope="module")
def by_depth(tiny_run):
    def at(num_loops):
        mesh = build_mesh(Mesh(data=2, fsdp=4))
        run = tiny_run(**CHANGES, **{"loop.num_loops": num_loops})
        return collectives(Module(Program(run, mesh).lower().compile().as_text()), mesh.shape)

    return {num_loops: at(num_loops) for num_loops in (1, 8)}


def total(found, *kinds):
    return sum(c.step_bytes for c in found if c.kind in kinds)


def test_inside_loops_only_the_sums_of_the_metrics_are_sent(by_depth):
    """A handful of numbers per micro-batch; no weight, gradient or activation."""
    assert all(c.wire_bytes <= FEW_NUMBERS for c in by_depth[8] if c.loop_depth)


def test_bytes_do_not_depend_on_the_number_of_loops(by_depth):
    for kinds in (("all-gather",), ("all-reduce", "reduce-scatter")):
        once, eight = (total(by_depth[r], *kinds) for r in (1, 8))
        assert once > 0
        assert eight == pytest.approx(once, rel=0.05)


def test_gradients_are_split_over_fsdp_before_they_cross_data(by_depth):
    """A reduce-scatter inside, then an all-reduce of a quarter between the copies of the weights."""
    across = total([c for c in by_depth[8] if c.axes == ("data",)], "all-reduce")
    inside = total([c for c in by_depth[8] if c.axes == ("fsdp",)], "all-reduce", "reduce-scatter")
    assert 0 < across < inside / 2
    assert all(c.wire_bytes <= FEW_NUMBERS for c in by_depth[8] if c.axes == ("data", "fsdp"))
