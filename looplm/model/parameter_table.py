"""What every parameter is and where it lies: the sharding rules applied to a model, to be read by people."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from rich.table import Table

from looplm.model.functional import FunctionalLM


class Row(NamedTuple):
    name: str
    """Path in the tree of parameters, dotted."""
    shape: tuple[int, ...]
    spec: jax.sharding.PartitionSpec
    bytes_per_device: int
    """Of the stored (float32) parameter; optimizer state and gradients come on top."""


def parameter_table(lm: FunctionalLM, mesh: jax.sharding.Mesh) -> list[Row]:
    """One row for every parameter of `lm` as it is laid out on `mesh`; allocates nothing."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(lm.abstract(mesh)):
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        rows.append(Row(".".join(str(key.key) for key in path), leaf.shape, leaf.sharding.spec, part))
    return rows


def totals(rows: Sequence[Row], mesh: jax.sharding.Mesh) -> str:
    """One line: parameters, mesh and what a device holds of them."""
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    held = sum(row.bytes_per_device for row in rows)
    return f"{sum(math.prod(row.shape) for row in rows):,} parameters on {axes}: {held / 2**20:,.1f} MiB on each device"


def as_text(rows: Sequence[Row]) -> Table:
    """For the console."""
    table = Table("parameter", "shape", "spec", "bytes per device")
    for row in rows:
        spec = ", ".join(str(axis) for axis in row.spec)
        table.add_row(row.name, " x ".join(map(str, row.shape)), f"({spec})", f"{row.bytes_per_device:,}")
    return table
