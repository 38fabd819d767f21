"""The model that is cut: an official folder, or a run of ours; read a row of a leaf at a time."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from looplm.checkpoint.adapters.base import by_leaf, rows_of
from looplm.checkpoint.adapters.places import STACKS
from looplm.checkpoint.digest import named_leaves
from looplm.checkpoint.folder import checkpoint_of, place_of
from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.stored_rows import StoredRows
from looplm.config.load import from_json
from looplm.config.schema import Loop, Model, MoE, Place
from looplm.convert.import_folder import length_of
from looplm.convert.stored_model import verified
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM

PLAIN = Model(vocab_size=1, dim=1, num_heads=1, hidden_dim=1, block_layers=1)
ALIKE = (
    "prelude_feed_forward", "coda_feed_forward", "value_embedding", "prelude_norm", "norm_at_loop_end",
    "norm_before_coda", "residual_step", "core", "halting", "injection", "conditioning", "state_init", "exit_gate",
    "read_out", "adapter", "norm_loops", "attention_loops", "front", "sequence_gate", "streams",
)  # fmt: skip
"""Settings with which a model of one loop is a plain stack of layers at their defaults."""


@dataclass(frozen=True)
class Source:
    """A plain stack of layers: embeddings, layers of one kind, a norm, a head."""

    path: Path
    model: Model
    length: int
    """Of the sequences that it takes."""
    read: Callable[[str, int | None], np.ndarray]
    """(path of a leaf, row or None) -> the leaf, or the row of it, float32."""
    config: dict[str, Any]
    """The official config.json; empty for a run."""

    @property
    def num_layers(self) -> int:
        return self.model.prelude_layers + self.model.block_layers + self.model.coda_layers

    def layer(self, name: str, number: int) -> np.ndarray:
        """A leaf of a layer, by its path within the layer and the layer's number."""
        place, row = self._places()[number]
        return self.read(f"{STACKS[place]}.{name}", row)

    def _places(self) -> list[tuple[Place, int]]:
        return [(place, row) for place in STACKS for row in range(self.model.layers_of(place))]


def open_source(path: Path, allow_keys: Collection[str] = ()) -> Source:
    """Opens the folder. Raises UserError for one that is no model or damaged, and for a model that is no plain stack of
    layers which run once."""
    if is_official(path):
        folder = HFFolder(path, allow_keys)
        model = _plain(path, folder.model(), folder.loop())
        return Source(path, model, length_of(folder), _of_folder(folder, model), folder.stored_config)
    root, step = checkpoint_of(path)
    run = from_json((root if step is None else root / "checkpoints" / str(step)) / "config.json")
    model = _plain(path, run.model, run.loop)
    seal = verified(CheckpointReader(root / "checkpoints"), step)
    rows = StoredRows(place_of(root / "checkpoints", seal.step), seal)
    return Source(path, model, run.data.sequence_length, rows, {})


def _plain(path: Path, model: Model, loop: Loop) -> Model:
    if loop.num_loops != 1:
        raise UserError(
            f"{path} is a model of {loop.num_loops} loops already, and a retrofit cuts one whose layers run once; "
            "train it further with init_from, or --set model=from:DIR"
        )
    odd = [f"model.{name}" for name in ALIKE if getattr(model, name) != getattr(PLAIN, name)]
    if isinstance(model.feed_forward, MoE) and model.feed_forward.dense_layers:
        odd.append("dense_layers among its experts")
    if odd:
        raise UserError(
            f"{path} is no plain stack of layers of one kind: it sets {', '.join(odd)}; a retrofit cuts models like "
            "Llama, Qwen3 and OLMo 2, and runs of ours without these settings"
        )
    return model


def _of_folder(folder: HFFolder, model: Model) -> Callable[[str, int | None], np.ndarray]:
    tensors, get = folder.checked(model)
    placed, shapes = by_leaf(tensors), named_leaves(FunctionalLM(model).shapes)

    def read(path: str, row: int | None) -> np.ndarray:
        own = placed[path] if row is None else [one for one in placed[path] if _row(one.tensor.layer) == row]
        (value,) = rows_of(own, get, shapes[path].shape)
        return value if row is None else value[0]

    return read


def _row(layer: int | tuple[int, int] | None) -> int | None:
    return layer[0] if isinstance(layer, tuple) else layer
