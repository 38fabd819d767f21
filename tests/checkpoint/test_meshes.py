"""A checkpoint of one mesh is restored on any other, to the bit, and saved from there again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.writer import CheckpointWriter
from looplm.config.schema import Checkpoint
from looplm.train.program import Program
from tests.checkpoint.conftest import FACTS, assert_equal, noise, trees_of
from tests.reasoner import REASONER

MESHES = {
    "8x1": {"fsdp": 8},
    "4x2": {"data": 4, "fsdp": 2},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "1": {"fsdp": 1},
}


@pytest.mark.parametrize(
    ("other", "changes"), [("4x2", {}), ("4x2", REASONER), ("2x2x2", {}), ("1", {}), ("1", REASONER)]
)
def test_there_and_back(
    program_on: Callable[..., Program], tmp_path: Path, other: str, changes: dict[str, Any]
) -> None:
    first, second = (
        trees_of(program_on(1 if name == "1" else 8, changes, **MESHES[name]).abstract_state())
        for name in ("8x1", other)
    )
    assert ("carry" in first) == bool(changes)
    trees = noise(first, 0)
    for step, (target, source) in enumerate(((second, first), (first, second)), start=1):
        folder = tmp_path / str(step)
        folder.mkdir()
        writer = CheckpointWriter(folder, Checkpoint(), FACTS, source)
        writer.save(step, trees)
        writer.require(step)
        restored = CheckpointReader(folder, pytest.fail).restore(target)
        assert_equal(restored.trees, trees)
        wanted = jax.tree.map(lambda leaf: leaf.sharding, target)
        assert jax.tree.map(lambda leaf: leaf.sharding, restored.trees) == wanted
        trees = restored.trees
    seals = [CheckpointReader(tmp_path / step).verified(int(step)) for step in ("1", "2")]
    assert seals[0].arrays == seals[1].arrays
