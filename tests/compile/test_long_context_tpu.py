"""Sequences over several TPUs in the compiled step: which kernels run how often, and what is held. Run with -m aot."""

import re
from collections import Counter

import pytest

from looplm.compile.compiled import compile_step
from looplm.compile.topology import described_devices
from looplm.config.schema import Mesh
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from tests.compile.test_tpu import SIZES, flags_that_libtpu_knows

pytestmark = pytest.mark.aot

__all__ = ["flags_that_libtpu_knows"]
LENGTH, CONTEXT = 3072, 4
"""Neither the length, nor its part of a device, nor that of a chunk is another dim."""


@pytest.mark.parametrize("keys", ["gathered", "ring"])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1"])
def test_kernels_run_as_often_as_layers_are_visited(tiny_run, topology: str, keys: str) -> None:
    """In a ring once for the keys of every device. Forward once more where the backward pass runs the loop again."""
    devices = described_devices(topology)
    rows = len(devices) // CONTEXT
    changes = {"data.sequence_length": LENGTH, "data.batch_tokens": 2 * rows * LENGTH, "mesh.context": CONTEXT}
    run = tiny_run(**SIZES | changes | {"sharding.keys": keys, "loop.num_loops": 2})
    module = compile_step(Program(run, build_mesh(Mesh(fsdp=rows, context=CONTEXT), devices))).module
    assert module is not None
    sites, turns = list(module.walk()), Counter[str]()
    lengths = {LENGTH, LENGTH // CONTEXT, LENGTH // CONTEXT // 2}
    held = {
        tuple(map(int, x.split(","))) for site in sites for x in re.findall(r"f\d+\[([\d,]+)", site.instruction.shape)
    }
    assert [shape for shape in held if sum(dim in lengths for dim in shape) > 1] == []
    assert any(LENGTH in shape for shape in held) == (keys == "gathered")
    for site in sites:
        kernel = re.match(r"splash_mha_(fwd|dkv|dq)", site.instruction.name)
        if kernel and site.instruction.opcode == "custom-call":
            turns[kernel[1]] += site.executions
    visits = run.loop.num_loops * run.model.block_layers * run.data.accumulation_steps
    visits *= CONTEXT if keys == "ring" else 1
    assert turns["dq"] == turns["dkv"] == visits
    assert visits <= turns["fwd"] <= 2 * visits
