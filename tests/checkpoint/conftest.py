"""A small state on any mesh, a folder with checkpoints of it, and an official folder as looplm reads it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import looplm
from looplm.api import LoadedLM
from looplm.checkpoint.writer import CheckpointWriter, Facts
from looplm.config.load import to_json
from looplm.config.schema import Checkpoint, Mesh, Run
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from looplm.train.saving import trees_of

FACTS = Facts("{}\n", 7, "fingerprint")


@pytest.fixture(scope="module")
def lm(folder: Path) -> LoadedLM:
    """The model of an official folder, of which every module has a fixture of its own."""
    return looplm.load(folder)


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, np.ndarray]:
    """What the official code gave and was given."""
    return dict(np.load(folder / "io.npz"))


@pytest.fixture(scope="package")
def program_on(tiny_run: Callable[..., Run]) -> Callable[..., Program]:
    """The tiny run's program, with leaves replaced, on a mesh of so many devices: `program_on(8, data=2, fsdp=4)`."""

    def build(num_devices: int, changes: Mapping[str, Any] | None = None, **axes: int) -> Program:
        return Program(tiny_run(**changes or {}), build_mesh(Mesh(**axes), jax.devices()[:num_devices]))

    return build


def noise(abstract: Any, seed: int) -> Any:
    """Arrays like these of random numbers, each on its mesh."""
    draw = np.random.default_rng(seed)

    def array(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = draw.standard_normal(leaf.shape).astype(leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    return jax.tree.map(array, abstract)


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), found, expected)


@pytest.fixture(scope="package")
def small() -> dict[str, Any]:
    """Abstract trees of a few arrays."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = jax.ShapeDtypeStruct((6, 4), np.dtype(np.float32), sharding=one)
    count = jax.ShapeDtypeStruct((), np.dtype(np.int32), sharding=one)
    return {"params": {"head": leaf, "core": {"kernel": leaf}}, "opt_state": ({"mu": {"head": leaf}}, count)}


@pytest.fixture
def writer_of(small: dict[str, Any], tmp_path: Path) -> Callable[..., CheckpointWriter]:
    """Opens tmp_path/checkpoints for writing `small`."""
    folder = tmp_path / "checkpoints"
    folder.mkdir(exist_ok=True)

    def build(config: Checkpoint | None = None, **options: Any) -> CheckpointWriter:
        return CheckpointWriter(folder, config or Checkpoint(), FACTS, small, **options)

    return build


@pytest.fixture(scope="package")
def two_steps(program_on: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints 1 and 2 of the tiny run, of different random numbers. Read only."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    folder.mkdir()
    program = program_on(1)
    abstract = trees_of(program.abstract_state())
    writer = CheckpointWriter(folder, Checkpoint(), FACTS._replace(config=to_json(program.run)), abstract)
    for step in (1, 2):
        writer.save(step, noise(abstract, step))
        writer.require(step)
    writer.close()
    return folder
