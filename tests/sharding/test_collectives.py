"""What the compiled step sends between devices: weights gathered once, gradients reduced once, at any depth."""

import re

import numpy as np
import pytest

from looplm.config.schema import Mesh
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program

COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"(f32|bf16|s32|pred|u32)\[([\d,]*)\]")


def collectives(run, mesh_config):
    """[(kind, inside a loop?, numbers)] of the compiled train step."""
    text = Program(run, build_mesh(mesh_config)).lower().compile().as_text()
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
        run = tiny_run(
            **{
                "loop.num_loops": num_loops,
                "model.block_layers": 2,
                "data.accumulation_steps": 2,
                "data.batch_tokens": 256,
            }
        )
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
