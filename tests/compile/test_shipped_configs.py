"""Bytes that a training step of every shipped config sends, on eight pretended CPU devices, as they were.

Configs of published sizes are represented by the tiny one of their file. After a change that is meant:
LOOPLM_UPDATE_GOLDEN=1 python -m pytest tests/compile/test_shipped_configs.py
"""

import json
import os
from pathlib import Path

import pytest

from looplm.compile.collectives import Collective, collectives
from looplm.compile.compiled import compile_step
from looplm.config.load import load_config, override
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from tests.config.shipped import NAMES

GOLDEN = Path(__file__).parents[1] / "golden" / "collectives.json"
LONG_TO_COMPILE = (
    "hrm_text:tiny", "huginn:tiny", "looped_moe:tiny", "moeut:tiny", "mor:tiny", "parcae:tiny", "smelt:tiny",
)  # fmt: skip
SMALL = [name for name in NAMES if ":" not in name or name.endswith(":tiny")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG_TO_COMPILE else []) for name in SMALL]
)
def test_bytes_are_as_they_were(name: str) -> None:
    run = override(load_config(name), {"mesh.data": 2, "mesh.fsdp": 4, "loop.unroll": False})
    program = Program(run, build_mesh(run.mesh))
    module = compile_step(program).module
    assert module is not None
    sent = summary(collectives(module, program.mesh.shape))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LOOPLM_UPDATE_GOLDEN"):
        golden[name] = sent
        GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
    assert sent == pytest.approx(golden[name], rel=0.02)
    assert sent["in_loops"] < sent["gathered_once"] / 100, "gather-once: only sums of metrics travel in loops"


def summary(found: list[Collective]) -> dict[str, int]:
    """Bytes a device sends in a step. Whether a reduction is scattered is the backend's choice, so it is not told."""
    once = [c for c in found if c.loop_depth == 0]
    return {
        "gathered_once": round(sum(c.step_bytes for c in once if c.kind == "all-gather")),
        "reduced_once": round(sum(c.step_bytes for c in once if c.kind in ("all-reduce", "reduce-scatter"))),
        "in_loops": round(sum(c.step_bytes for c in found if c.loop_depth)),
    }
