"""Runs that learn from a teacher: over any mesh, to the end, and refusals before anything is written."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from looplm.checkpoint.seal import read_seal
from looplm.config.load import override
from looplm.config.schema import Mesh
from looplm.data.window import PADDING
from looplm.errors import UserError
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from tests.convert.folders import GOLDEN

STUDENT = {"objective": "distill", "model.dim": 8, "model.exit_gate": None}


def rows_of(run):
    random, shape = np.random.default_rng(0), (8, run.data.sequence_length)
    tokens, labels = random.integers(0, run.model.vocab_size, (2, *shape)).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return {"tokens": tokens, "labels": labels, "segments": np.full(shape, PADDING + 1, np.int32),
            "positions": positions}  # fmt: skip


def one_step(run, devices):
    program = Program(run, build_mesh(run.mesh, jax.devices()[:devices]))
    said = []
    step = program.compile(*program.taught(said.append))
    _, output = step(program.create_state(), rows_of(run), 0)
    assert len(said) == 1
    return jax.device_get(output), said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"objective.loops": "all", "loop.depth": {"kind": "uniform", "max_loops": 3}, "teacher_loops": 2}]
)
def test_a_step_is_the_same_on_any_mesh(finished_run, tiny_run, changes):
    run = tiny_run(**STUDENT | {"teacher": str(finished_run)} | changes)
    expected, said = one_step(override(run, {"mesh": Mesh(fsdp=1)}), 1)
    assert f"learning from {finished_run} after step 3 at {2 if changes else 3} loops" in said
    assert expected.means["train/divergence"] > 0
    for mesh in (Mesh(data=2, fsdp=4), Mesh(fsdp=2, tensor=2, context=2)):
        found, _ = one_step(override(run, {"mesh": mesh}), 8)
        for (path, value), ours in zip(tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(ours, value, rtol=1e-3, atol=1e-4, err_msg=keystr(path))


@pytest.mark.slow
def test_a_student_comes_near_its_teacher(finished_run, tiny_run, config_file, tmp_path, command):
    """With labels of no weight the divergence falls; and a run that goes on from its middle ends with the same bits."""
    weights = {"objective": {"kind": "distill", "weight": 1.0, "temperature": 1.0}, "teacher": str(finished_run)}
    config, last = (
        config_file(tiny_run(**STUDENT | weights | {"num_steps": 12, "checkpoint.every_steps": 6})),
        tmp_path / "run" / "checkpoints" / "12",
    )
    seals = []
    for _ in range(2):
        shown = command("train", config, "--workdir", tmp_path / "run")
        assert shown.code == 0, shown.stderr
        assert f"learning from {finished_run}" in shown.stdout.replace("\n", " ")
        seals.append(read_seal(last).arrays)
        shutil.rmtree(last)
    assert seals[0] == seals[1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    divergence = [row["train/divergence"] for row in rows if "train/divergence" in row]
    assert len(divergence) == 12
    assert np.mean(divergence[-3:]) < 0.7 * divergence[0]


def test_a_teacher_that_does_not_fit_is_refused(finished_run, tiny_run, tmp_path):
    def program(**changes):
        run = tiny_run(**STUDENT | changes)
        return Program(run, build_mesh(run.mesh))

    with pytest.raises(UserError, match=r"vocabulary of 384 tokens and model\.vocab_size=400; .* teacher of the same"):
        program(teacher=str(finished_run), **{"model.vocab_size": 400})
    with pytest.raises(UserError, match="neither a run directory nor a model folder"):
        program(teacher=str(tmp_path))
    with pytest.raises(UserError, match=r"llama_a has a vocabulary of \d+ tokens"):
        program(teacher=str(GOLDEN / "llama_a"))
    with pytest.raises(UserError, match=r"teacher=.*num_heads=2"):
        program(teacher=str(finished_run), mesh=Mesh(tensor=8), **{"model.num_heads": 8})
