"""Training of tiny runs in this process."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

from looplm.config.schema import Run
from looplm.metrics.sinks import read_metrics
from looplm.sharding.mesh import build_mesh
from looplm.train import trainer


class Trained(NamedTuple):
    """What a run ends with."""

    rows: list[dict[str, float]]
    """The lines of metrics.jsonl."""
    params: dict[str, np.ndarray]
    """By path."""

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


@pytest.fixture(scope="module")
def train_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Trains a run on the first so many devices, in a workdir of its own unless one is named."""

    def train(run: Run, num_devices: int, workdir: Path | None = None) -> Trained:
        workdir = workdir or tmp_path_factory.mktemp("run")
        devices = jax.devices()[:num_devices]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "build_mesh", lambda config: build_mesh(config, devices))
            state = trainer.Trainer(run, workdir, Console(file=io.StringIO())).train()
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
        params = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        return Trained(read_metrics(workdir / "metrics.jsonl"), params)

    return train
