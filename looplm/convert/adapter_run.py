"""Runs with an adapter: what of them is read, and `looplm adapter merge`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from looplm.checkpoint.folder import checkpoint_of, place_of
from looplm.checkpoint.hf_folder import is_official
from looplm.checkpoint.lineage import GENERATION, OFFICIAL, TOKENIZER_FILES
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.seal import CONFIG_FILE, Seal
from looplm.checkpoint.stored_rows import StoredRows
from looplm.checkpoint.streamed import Streamed, write_streamed
from looplm.config.load import from_json, to_json
from looplm.config.schema import LoRA, Model, Optim, Run
from looplm.convert.files import made_at_once
from looplm.convert.stored_model import verified
from looplm.data.manifest import TEMPLATE_FILE
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM
from looplm.model.layers import LoopParam
from looplm.model.lora import OF_EXPERTS
from looplm.optim.learning import declared

KERNEL = ".kernel"
PARTS = ("rates", "train", "frozen")
"""Settings of the optimizer that may name parts which a merged model has not."""


class AdapterRun(NamedTuple):
    """A checkpoint of a run whose model has an adapter that all loops share."""

    root: Path
    run: Run
    seal: Seal
    rows: StoredRows
    parts: dict[str, nnx.Param]
    """The declarations of all parameters by dotted path."""

    @property
    def adapter(self) -> LoRA:
        assert self.run.model.adapter is not None, "see `open_adapter`"
        return self.run.model.adapter

    @property
    def base(self) -> Model:
        """The model without it."""
        return self.run.model.model_copy(update={"adapter": None})

    @property
    def adapters(self) -> dict[str, str]:
        """The path of every adapted kernel, and of its adapter."""
        found = dict.fromkeys(
            path.rpartition(".")[0] for path, variable in self.parts.items() if variable.group == "adapter"
        )
        # Of experts the matrices themselves have names: experts.adapter.up stands beside experts.up.
        ends = {path: path.rpartition(".adapter") for path in found}
        return {before + (name or KERNEL): path for path, (before, _, name) in ends.items()}

    def pair(self, adapter: str) -> tuple[np.ndarray, np.ndarray]:
        """A (layers, experts, inputs..., rank) and B (layers, experts, rank, outputs...), float64; without layers where
        they are not stacked, and without experts where there are none. adapter: its path."""
        a, b = (self.rows(f"{adapter}.{name}", None).astype(np.float64) for name in "ab")
        return a, b

    def num_expert_dims(self, adapter: str) -> int:
        """How many dims of A and B count experts."""
        return sum(axis in OF_EXPERTS for axis in self.parts[f"{adapter}.a"].axes)


def open_adapter(workdir: Path, step: int | None = None) -> AdapterRun:
    """Opens a checkpoint; the newest that verifies when `step` is None. Raises UserError for a run that is none, or has
    no adapter, or one for every loop."""
    if is_official(workdir):
        raise UserError(f"{workdir} is an official model, and no run with an adapter; import it and train one")
    root, named = checkpoint_of(workdir)
    seal = verified(CheckpointReader(root / "checkpoints"), named if step is None else step)
    place = place_of(root / "checkpoints", seal.step)
    run = from_json(place / CONFIG_FILE)
    if run.model.adapter is None:
        raise UserError(
            f"{workdir} has no adapter (model.adapter=null): it was trained without one, or merged already; give the "
            "run that trained one"
        )
    if run.model.adapter.rank == 0:
        raise UserError(f"{workdir} has an adapter of rank 0, which adds nothing; give a run that trained one")
    parts = declared(FunctionalLM(run.model))
    if any(isinstance(variable, LoopParam) for variable in parts.values() if variable.group == "adapter"):
        raise UserError(
            f"{workdir} has an adapter for every loop (model.adapter.loops={run.model.adapter.loops}), and its loops "
            "share the weights that it would be added to; use the run as it is, or train with model.adapter.loops=null"
        )
    return AdapterRun(root, run, seal, StoredRows(place, seal), parts)


def merge_run(workdir: Path, target: Path, console: Console, *, step: int | None = None) -> None:
    """Writes a run whose weights are W + scale A B, and whose model has no adapter. Raises as `open_adapter`."""
    opened = open_adapter(workdir, step)

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Streamed:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return Streamed(shape.shape, np.dtype(np.float32), partial(_merged, opened, name, shape.shape))

    params = jax.tree_util.tree_map_with_path(leaf, FunctionalLM(opened.base).shapes)
    optim = opened.run.optim.model_copy(update={key: getattr(Optim(learning_rate=1), key) for key in PARTS})
    config = to_json(opened.run.model_copy(update={"model": opened.base, "optim": optim, "init_from": None}))
    with made_at_once(target) as making:
        write_streamed(making / "checkpoints", 0, params, config=config, seed=opened.run.seed, metrics={})
        (making / "config.json").write_text(config)
        for name in _kept(opened.root):
            (making / name).write_bytes((opened.root / name).read_bytes())
    console.print(
        f"wrote {target}, a run after 0 steps: step {opened.seal.step} of {workdir}, whose adapter is now in the "
        f"{len(opened.adapters)} kernels that it was beside"
    )


def _merged(opened: AdapterRun, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The rows of a leaf of the merged model."""
    adapter, is_stacked = opened.adapters.get(name), len(shape) > len(opened.parts[name].axes)
    added = None if adapter is None else opened.pair(adapter)
    for layer in range(shape[0]) if is_stacked else [None]:
        row = opened.rows(name, layer)
        if added is not None:
            a, b = (matrix if layer is None else matrix[layer] for matrix in added)
            assert adapter is not None, "it has a pair"
            experts, rank = a.shape[: opened.num_expert_dims(adapter)], opened.adapter.rank
            assert row.shape == a.shape[:-1] + b.shape[len(experts) + 1 :], "kernels have the dims that they read first"
            # In float64, so that the sum is rounded once.
            product = opened.adapter.scale * (a.reshape(*experts, -1, rank) @ b.reshape(*experts, rank, -1))
            row = (row + product.reshape(row.shape)).astype(np.float32)
        yield row if layer is None else row[None]


def _kept(root: Path) -> list[str]:
    """Files that say what tokens mean, and which official model the weights descend from."""
    names = {OFFICIAL, GENERATION, TEMPLATE_FILE, *TOKENIZER_FILES, *(path.name for path in root.glob("tokenizer.*"))}
    return sorted(name for name in names if (root / name).is_file())
