"""When weights are gathered layer by layer instead of once."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import jax
import pytest

from looplm.config.schema import Run
from looplm.sharding.mesh import MESH_AXES, build_mesh
from looplm.train import program as program_module
from looplm.train.program import Program

Build = Callable[..., Program]
HELD = 2 * (4 * 16 * 16 + 3 * 16 * 32) * 8
"""Bytes of two layers, whole: four matrices of the attention, three of the feed-forward; weight and gradient of each in
float32."""


@pytest.fixture
def build(tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Build:
    """The program of two layers on two devices with so much memory; None: nobody knows how much."""

    def make(memory_bytes: float | None, **changes: object) -> Program:
        device = None if memory_bytes is None else SimpleNamespace(memory_bytes=memory_bytes)
        monkeypatch.setattr(program_module, "find_device", lambda kind: device)
        run = tiny_run(**{"model.block_layers": 2, "mesh.fsdp": 2, "mesh.data": 1, "loop.remat": "layer", **changes})
        num_devices = math.prod(getattr(run.mesh, axis) for axis in MESH_AXES)
        return Program(run, build_mesh(run.mesh, jax.devices()[:num_devices]))

    return make


@pytest.mark.parametrize(
    ("memory_bytes", "changes", "expected"),
    [
        (3 * HELD - 3, {}, True),
        (3 * HELD, {}, False),
        (3 * HELD - 3, {"mesh.tensor": 2}, False),
        (3 * HELD / 2 - 3, {"mesh.tensor": 2}, True),
        (1, {"mesh.data": 2, "mesh.fsdp": 1}, False),  # they are whole everywhere
        (1, {"loop.remat": "none"}, False),  # all of them are kept for the backward pass anyway
        (None, {}, False),
        (1, {"sharding.gather": "once"}, False),
        (1e18, {"sharding.gather": "per_layer"}, True),
        (None, {"sharding.gather": "per_layer"}, True),
    ],
)
def test_weights_that_take_a_third_of_a_device_are_gathered_where_they_are_used(
    memory_bytes: float | None, changes: dict[str, object], expected: bool, build: Build
) -> None:
    assert build(memory_bytes, **changes).gathers_per_layer == expected


@pytest.mark.parametrize(("extra", "expected"), [(-3, True), (0, False)])
def test_of_experts_a_device_holds_its_own(extra: int, expected: bool, build: Build) -> None:
    """Of four experts two."""
    experts = {
        "model.feed_forward": {"kind": "moe", "num_experts": 4, "experts_per_token": 1, "expert_dim": 8},
        "mesh.expert": 2,
    }
    held = 2 * (4 * 16 * 16 + 2 * 3 * 16 * 8) * 8
    assert build(3 * held + extra, **experts).gathers_per_layer == expected
