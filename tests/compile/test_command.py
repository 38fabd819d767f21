"""`looplm compile` on pretended CPU devices: what it says of the real step."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from looplm.compile.hlo import Module
from looplm.compile.traffic import memory_traffic
from looplm.config.schema import Run
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program


def test_json_and_text_agree_with_the_compiled_step(command, config_file: Callable[[Run], Path], tiny_run) -> None:
    run = tiny_run(**{"mesh.data": 2, "mesh.fsdp": 4})
    code, stdout, _ = command("compile", config_file(run), "--topology", "cpu:8", "--json")
    record = json.loads(stdout)
    program = Program(run, build_mesh(run.mesh))
    analysis = program.lower().compile().memory_analysis()
    assert code == 0
    assert record["memory"]["temporaries"] == pytest.approx(analysis.temp_size_in_bytes, rel=0.05)
    assert record["memory"]["arguments"] == analysis.argument_size_in_bytes
    assert (record["num_params"], record["mesh"]) == (program.lm.num_params, {"data": 2, "fsdp": 4})
    # A CPU is in no table of hardware: no verdict and no time, instead of wrong ones.
    assert (record["fits"], record["time"], record["mfu"]) == (None, None, None)
    assert record["flops_per_step"] == record["flops_per_token"] * run.data.batch_tokens

    code, stdout, _ = command("compile", config_file(run), "--topology", "cpu:8")
    assert code == 0
    assert "8 x cpu; mesh data=2, fsdp=4" in stdout
    assert "all-gather" in stdout


@pytest.mark.parametrize("topology", ["cpu:0", "cpu:99", "v5e", "abacus:2x2"])
def test_an_unknown_topology_is_refused(command, config_file: Callable[[Run], Path], tiny_run, topology: str) -> None:
    code, _, stderr = command("compile", config_file(tiny_run()), "--topology", topology)
    assert code == 2
    assert stderr.startswith(f"looplm: --topology {topology}")
    assert len(stderr.splitlines()) == 1


def test_traffic_of_a_product_is_its_operands_and_result() -> None:
    text = jax.jit(lambda x, w: x @ w).lower(*[jax.ShapeDtypeStruct((256, 256), "float32")] * 2).compile().as_text()
    assert memory_traffic(Module(text)) == 3 * 256 * 256 * 4
