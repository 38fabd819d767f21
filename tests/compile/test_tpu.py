"""The training step compiled for a described TPU slice; needs libtpu, no device. Run with -m aot."""

import os
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from looplm.compile.collectives import collectives
from looplm.compile.compiled import compile_step
from looplm.compile.report import describe, lines
from looplm.compile.topology import described_devices
from looplm.config.load import load_config, override
from looplm.config.schema import Mesh
from looplm.errors import UserError
from looplm.ops.grouped_matmul import check_backend
from looplm.sharding.mesh import batch_part, build_mesh
from looplm.train.program import Program

pytestmark = pytest.mark.aot

SIZES = {
    "model.vocab_size": 4096,
    "model.dim": 1024,
    "model.num_heads": 8,
    "model.hidden_dim": 2048,
    "model.block_layers": 2,
    "data.sequence_length": 128,
    "data.batch_tokens": 2 * 16 * 128,
    "data.accumulation_steps": 2,
}
"""Every device's part is at least a tile of 128 columns: smaller gradients are not worth scattering to the compiler."""
FEW_NUMBERS = 2**8
"""Bytes: the sums of the metrics of a micro-batch."""


@pytest.fixture(autouse=True, scope="module")
def flags_that_libtpu_knows() -> Iterator[None]:
    """It reads them when it is loaded, and ends the process for one that it does not know."""
    flags = os.environ["XLA_FLAGS"].split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", " ".join(flag for flag in flags if not flag.startswith("--xla_cpu_")))
        yield


def steps(tiny_run, *loops: int):
    for num_loops in loops:
        run = tiny_run(**SIZES, **{"loop.num_loops": num_loops})
        program = Program(run, build_mesh(Mesh(data=2, fsdp=8), described_devices("v5e:4x4")))
        yield program, compile_step(program)


def test_weights_are_gathered_once_and_gradients_scattered_once_at_any_depth(tiny_run) -> None:
    sent = [collectives(step.module, program.mesh.shape) for program, step in steps(tiny_run, 1, 8)]
    for kinds in (("all-gather",), ("all-reduce", "reduce-scatter")):
        once, eight = (sum(c.step_bytes for c in found if c.kind in kinds) for found in sent)
        assert once > 0
        assert eight == pytest.approx(once, rel=0.05)
    assert all(c.wire_bytes <= FEW_NUMBERS for found in sent for c in found if c.loop_depth)
    large = [c for c in sent[1] if c.wire_bytes > 100_000]
    assert {(c.kind, c.axes, c.dtypes) for c in large} == {
        ("all-gather", ("fsdp",), ("bf16",)),
        ("reduce-scatter", ("fsdp",), ("f32",)),
        ("all-reduce", ("data",), ("f32",)),  # of the part that is left
    }


def test_the_report_of_a_known_device_has_a_verdict_and_a_time(tiny_run) -> None:
    ((program, step),) = steps(tiny_run, 3)
    result = describe(program, step, "v5e:4x4")
    assert (result.device_kind, result.num_devices, result.fits, result.remedies) == ("TPU v5 lite", 16, True, [])
    assert not result.later_rounds
    assert result.time is not None
    assert result.mfu is not None
    assert 0 < result.mfu < 1
    assert result.time.step_s > max(result.time.compute_s, result.time.links_once_s)


def test_what_does_not_fit_gets_remedies_that_are_predicted_to(tiny_run) -> None:
    run = tiny_run(**{**SIZES, "data.sequence_length": 32768, "data.batch_tokens": 2 * 16 * 32768})
    program = Program(run, build_mesh(Mesh(data=2, fsdp=8), described_devices("v5e:4x4")))
    result = describe(program, compile_step(program), "v5e:4x4")
    assert result.fits is False
    assert result.remedies
    assert all(remedy.predicted_bytes < result.memory.total for remedy in result.remedies)


def test_an_unknown_slice_is_refused() -> None:
    with pytest.raises(UserError, match="v6e-16 is not known to the compiler"):
        described_devices("v6e-16")


def test_axes_may_split_the_dims_of_a_torus_and_hosts_may_be_blocks_of_it() -> None:
    devices = described_devices("v5p:4x4x4")
    assert build_mesh(Mesh(data=2, fsdp=32), devices).shape["fsdp"] == 32
    part = batch_part(build_mesh(Mesh(fsdp=64), devices))
    assert (part.num_parts, len(part.places)) == (16, 4)


def test_experts_stay_where_they_are_and_tokens_travel(tiny_run) -> None:
    """Kernels of experts are gathered over `fsdp` once a step and never over `expert`; rows of tokens go along it."""
    experts = {"kind": "moe", "num_experts": 8, "experts_per_token": 2, "expert_dim": 1024}
    run = tiny_run(**SIZES, **{"model.feed_forward": experts, "loop.num_loops": 2, "loop.remat": "none"})
    program = Program(run, build_mesh(Mesh(expert=4, fsdp=4), described_devices("v5e:4x4")))
    step = compile_step(program)
    sent = collectives(step.module, program.mesh.shape)
    inside = [c for c in sent if c.loop_depth and c.executions and c.wire_bytes > FEW_NUMBERS]
    assert {c.axes for c in inside} == {("expert",)}
    # Rows there and back, and so their cotangents, in each of two micro-batches, two loops and two layers.
    choices = 128 * 2
    rows = [c for c in inside if c.kind == "ragged-all-to-all"]
    assert [(c.executions, c.wire_bytes) for c in rows] == [(8, choices * 1024 * 2 * 3 / 4)] * 4
    # Beside them only the weights of choices and what experts get, gathered, or summed up where they are few.
    assert max(c.wire_bytes for c in inside if c not in rows) <= 2 * 3 * 1.25 * choices * 4
    assert any(c.kind == "ragged-all-to-all" and not c.executions for c in sent)
    result = describe(program, step, "v5e:4x4")
    assert result.later_rounds
    assert all(row["executions"] for row in result.collectives or ())
    assert any(line.startswith("counted for balanced routing") for line in lines(result))
    gathered = sum(c.step_bytes for c in sent if c.kind == "all-gather" and c.axes == ("fsdp",) and not c.loop_depth)
    held = program.lm.num_params - program.lm.num_params_of_experts * (1 - 1 / 4)
    assert gathered == pytest.approx(2 * held * 3 / 4, rel=0.05)  # in bfloat16, three of four parts


@pytest.mark.parametrize("name", ["looped_moe", "smelt", "moeut"])
def test_presets_with_experts_compile(name: str) -> None:
    changes = {"mesh.expert": 4 if name != "moeut" else 1, "loop.num_loops": 2}
    run = override(load_config(f"{name}:tiny"), changes)
    run = override(run, {"data.batch_tokens": 16 * run.data.sequence_length, "model.dtype": "bfloat16"})
    program = Program(run, build_mesh(run.mesh, described_devices("v5e:4x4")))
    assert describe(program, compile_step(program), "v5e:4x4").fits


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernel_of_tokamax_is_in_the_program(tiny_run, dtype) -> None:
    """With experts wider than a tile. XLA would take a kernel of its own, when it compiles."""
    try:
        check_backend("tokamax", "tpu")
    except UserError as error:
        pytest.skip(str(error))
    moe = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 1536, "expert": "relu"}
    ours = {**SIZES, "data.batch_tokens": 2 * 4 * 128, "loop.num_loops": 2, "model.dtype": dtype}
    for backend, has_one in (("auto", False), ("tokamax", True)):
        run = tiny_run(**ours, **{"model.feed_forward": {**moe, "backend": backend}})
        program = Program(run, build_mesh(Mesh(fsdp=2, expert=2), described_devices("v5e:2x2")))
        assert ("pallas_tpu_ragged_dot" in program.lower().as_text()) == has_one
        assert describe(program, compile_step(program), "v5e:2x2").fits


@pytest.mark.parametrize("context", [1, 2])
def test_attention_is_a_kernel_and_no_array_holds_all_scores(tiny_run, context) -> None:
    """Forward it runs once a visit of a layer, and once more where the backward pass runs the loop again."""
    length = 1536  # of no other dim
    run = tiny_run(**SIZES | {"data.sequence_length": length, "data.batch_tokens": 2 * 16 * length})
    mesh = Mesh(data=2, fsdp=8 // context, context=context)
    module = compile_step(Program(run, build_mesh(mesh, described_devices("v5e:4x4")))).module
    assert module is not None
    sites = list(module.walk())
    assert not any(f"{length},{length}]" in site.instruction.shape for site in sites)
    turns = Counter()
    for site in sites:
        kernel = re.match(r"splash_mha_(fwd|dkv|dq)", site.instruction.name)
        if kernel and site.instruction.opcode == "custom-call":
            turns[kernel[1]] += site.executions
    visits = run.loop.num_loops * run.model.block_layers * run.data.accumulation_steps
    assert turns["dq"] == turns["dkv"] == visits
    assert visits <= turns["fwd"] <= 2 * visits


def test_loops_that_are_written_out_compile_for_several_chips(tiny_run) -> None:
    """Calls of one function that gives partial sums are refused by the compiler: `model.loop`."""
    for remat in ("none", "loop"):
        run = tiny_run(**{"loop.unroll": True, "loop.remat": remat, "model.block_layers": 2, "data.batch_tokens": 256})
        program = Program(run, build_mesh(Mesh(data=2, fsdp=2), described_devices("v5e:2x2")))
        assert describe(program, compile_step(program), "v5e:2x2").fits
