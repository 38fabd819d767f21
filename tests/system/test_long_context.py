"""Training on sequences that lie on several devices: the same numbers, and what the compiled step holds and sends."""

import re
from collections.abc import Callable

import jax
import pytest

from looplm.config.schema import Run
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops
from looplm.train.memory import memory_of
from looplm.train.program import Program
from tests.system.test_meshes import ALONE, MODEL, WITH_EXPERTS, assert_same, train

PACKED = {"data.sequence_length": 128, "data.batch_tokens": 4 * 128, "optim.optimizer.eps": 1e-4}
"""Long enough for attention by blocks; documents end on all devices."""
DENSE = MODEL | PACKED | {"model.positions": "rotary"}
EXPERTS = WITH_EXPERTS | PACKED
WINDOW = {**PACKED, "model.attention_window": 30}
BY_SEQUENCE = DENSE | {"loop.depth_per": "sequence", "model.conditioning": "none"}
RING = {"sharding.keys": "ring"}


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        (PACKED, {"mesh.context": 4, **RING}),
        *(
            pytest.param(model, axes, marks=pytest.mark.slow)
            for model, axes in (
                (DENSE, {"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2}),
                (DENSE, {"mesh.context": 2, "mesh.tensor": 4, **RING}),
                (WINDOW, {"mesh.context": 4}),
                (WINDOW, {"mesh.context": 4, **RING}),
                (BY_SEQUENCE, {"mesh.data": 2, "mesh.context": 4}),
                (BY_SEQUENCE, {"mesh.data": 2, "mesh.context": 4, **RING}),
                (EXPERTS, {"mesh.expert": 2, "mesh.context": 4}),
                (EXPERTS, {"mesh.expert": 2, "mesh.context": 2, **RING}),
            )
        ),
    ],
)
def test_a_sequence_over_devices(tiny_run: Callable[..., Run], model: dict, axes: dict) -> None:
    """Losses, all other metrics and the weights of five steps."""
    assert_same(train(tiny_run(**model | ALONE | axes)), train(tiny_run(**model | ALONE)))


LENGTH = 1280
"""Neither it nor a fourth of it is another dim."""


@pytest.mark.parametrize("keys", ["gathered", "ring"])
def test_no_device_holds_scores_of_all_and_in_a_ring_not_even_keys(tiny_run: Callable[..., Run], keys: str) -> None:
    changes = {"mesh.fsdp": 1, "mesh.context": 4, "sharding.keys": keys, "objective": "final", "loop.num_loops": 2}
    run = tiny_run(**changes, **{"data.sequence_length": LENGTH, "data.batch_tokens": LENGTH, "model.exit_gate": None})
    program = Program(run, build_mesh(run.mesh, jax.devices()[:4])).lower().compile().as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f\d+\[([\d,]+)\]", program)}
    part = LENGTH // 4
    assert any(part in shape for shape in shapes)
    assert [shape for shape in shapes if sum(dim in (LENGTH, part) for dim in shape) > 1] == []
    assert any(LENGTH in shape for shape in shapes) == (keys == "gathered")
    assert ("collective-permute" in program) == (keys == "ring")


def test_a_run_says_how_its_sequences_lie(tiny_run: Callable[..., Run]) -> None:
    """Not in zig-zag order where a part may look at neighbours or at who is first."""
    capacity = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "capacity_factor": 1.0}
    mesh = jax.devices()[:4]
    for changes, line in (
        ({}, "zig-zag order, keys gathered"),
        (RING, "zig-zag order, keys going around"),
        ({"model.attention_mask": "full"}, "their order, keys gathered"),
        ({"model.feed_forward": capacity}, "their order, keys gathered"),
    ):
        run = tiny_run(**PACKED | changes | {"mesh.fsdp": 1, "mesh.context": 4})
        assert Program(run, build_mesh(run.mesh, mesh)).attention.endswith(
            f"sequences on 4 devices each, tokens in {line}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("axes", [RING, {}], ids=["ring", "gathered"])
def test_model_flops_do_not_depend_on_where_a_sequence_lies(tiny_run: Callable[..., Run], axes: dict) -> None:
    def model_flops(devices: list[jax.Device], changes: dict) -> float:
        run = tiny_run(**PACKED | {"mesh.fsdp": 1, "objective": "final", "model.exit_gate": None} | changes)
        return step_flops(Program(run, build_mesh(run.mesh, devices)).trace().jaxpr).at(0).model

    found = model_flops(jax.devices()[:4], {"mesh.context": 4} | axes)
    assert found == pytest.approx(model_flops(jax.devices()[:1], {}), rel=1e-6)


@pytest.mark.slow
def test_memory_of_a_step_grows_linearly_with_the_sequence(tiny_run: Callable[..., Run]) -> None:
    """One sequence of width 512 on one CPU: twice the tokens take twice the temporaries, nothing of the size of S^2."""

    def temporaries(length: int) -> int:
        run = tiny_run(
            **{"model.dim": 512, "model.num_heads": 8, "model.hidden_dim": 1408, "model.block_layers": 2},
            **{"loop.num_loops": 2, "loop.remat": "none", "mesh.fsdp": 1},
            **{"data.sequence_length": length, "data.batch_tokens": length, "data.accumulation_steps": 1},
        )
        return memory_of(Program(run, build_mesh(run.mesh, jax.devices()[:1])).lower().compile()).temporaries

    small, middle, large = map(temporaries, (2048, 4096, 8192))
    assert (large - middle) / (middle - small) == pytest.approx(2, rel=0.1)
    assert large < 4.5 * small
