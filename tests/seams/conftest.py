"""Official fixtures of systems that the engine does not ship, and ways to put sketches of their parts into a model.

They show that these systems need no change of the engine: run with -m seams.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


class Fixture(NamedTuple):
    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    io: dict[str, np.ndarray]
    folder: Path


def fixture(name: str) -> Fixture:
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    return Fixture(config, load_file(folder / "model.safetensors"), dict(np.load(folder / "io.npz")), folder)


def bound(module: nnx.Module, params: dict[str, Any]) -> Any:
    """The module with these values, of which there must be all."""
    graph, state = nnx.split(module)
    wanted = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    assert wanted == jax.tree.map(jnp.shape, params)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def relative_error(found: Any, official: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(found) - official)) / np.max(np.abs(official)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.seams)
