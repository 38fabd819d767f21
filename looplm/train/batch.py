"""From the loader's rows to device arrays: micro-batches over the mesh, with what belongs to every row."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from looplm.config.schema import Run
from looplm.sharding.mesh import batch_part
from looplm.sharding.rules import placement
from looplm.sharding.split import split_of

PER_TOKEN = ("tokens", "labels", "segments", "positions")


class Batch(NamedTuple):
    """A training batch on the devices, int32: A micro-batches of B/A sequences; one micro-batch has no leading dim."""

    tokens: jax.Array
    """Ids, (A, B/A, S)."""
    labels: jax.Array
    """The id that every token should predict; see `ops.cross_entropy`."""
    segments: jax.Array
    """Number of the document in the row; see `data.window`."""
    positions: jax.Array
    """Position in the document."""
    sequence: jax.Array
    """Row in the global batch, (A, B/A)."""
    depth: jax.Array | None = None
    """(loops without gradient, loops with gradient) of every sequence, (A, B/A, 2); None where all have the same."""
    ids: jax.Array | None = None
    """Row of the model's table of ids, (A, B/A); None for a model without."""


class BatchLayout:
    """Shapes and shardings of a training batch."""

    def __init__(self, run: Run, mesh: jax.sharding.Mesh, *, per_sequence: bool):
        data, split = run.data, split_of(run, mesh)
        self.mesh, self.per_sequence, self.steps = mesh, per_sequence, data.accumulation_steps
        self._order = None if split is None or not split.zigzag else split.order(data.sequence_length)
        """Of tokens on the devices, to balance the work of the attention; None: as they come."""
        self.batch_size = data.batch_tokens // data.sequence_length
        self.part, self.num_parts, self._places, self._num_places = batch_part(mesh)
        """Which rows this process needs: part `part` of `num_parts` equal ones."""
        rows = (self.steps, self.batch_size // self.steps)
        self.shapes: dict[str, tuple[int, ...]] = dict.fromkeys(PER_TOKEN, (*rows, data.sequence_length))
        self.shapes |= {"sequence": rows} | ({"depth": (*rows, 2)} if per_sequence else {})
        if run.model.num_ids:
            self.shapes["ids"] = rows

    def sharding(self, name: str) -> NamedSharding:
        axes = ("one", "batch", "sequence") if name in PER_TOKEN else ("one", "batch")
        return placement(self.mesh, *axes)

    def abstract(self) -> Batch:
        """Shapes in place of arrays."""
        leaves: dict[str, Any] = {
            name: jax.ShapeDtypeStruct(shape, np.int32, sharding=self.sharding(name))
            for name, shape in self.shapes.items()
        }
        return Batch(**leaves)

    def place(self, rows: Mapping[str, np.ndarray], drawn: np.ndarray) -> Batch:
        """rows: PER_TOKEN of this process, (B / num_parts, S), and `ids` if the data has them, (B / num_parts,). drawn:
        depths of the step, (2,) or (B, 2)."""
        count = self.batch_size // self.num_parts
        mine = slice(self.part * count, (self.part + 1) * count)
        per_token = {name: rows[name] for name in PER_TOKEN}
        if self._order is not None:
            per_token = {name: array[:, self._order] for name, array in per_token.items()}
        leaves = per_token | {"sequence": np.arange(mine.start, mine.stop, dtype=np.int32)}
        leaves |= {"ids": rows["ids"]} if "ids" in self.shapes else {}
        if self.per_sequence:
            leaves["depth"] = drawn[mine]
        return Batch(**{name: self._place(name, value) for name, value in leaves.items()})

    def _place(self, name: str, rows: np.ndarray) -> jax.Array:
        mine, shape = rows.reshape(self.steps, -1, *rows.shape[1:]), self.shapes[name]
        count = shape[1] // self._num_places

        def at(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "asked for by the devices of this process"
            first = self._places.index((index[1].start or 0) // count) * count
            return mine[:, first : first + count, *index[2:]]

        return jax.make_array_from_callback(shape, self.sharding(name), at)

    def place_drawn(self, drawn: np.ndarray) -> jax.Array:
        """The depth that all sequences share, (2,)."""
        shared = np.zeros(2, np.int32) if self.per_sequence else drawn  # else it travels with the rows
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, PartitionSpec()), shared)

    def abstract_drawn(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2,), np.int32, sharding=NamedSharding(self.mesh, PartitionSpec()))
