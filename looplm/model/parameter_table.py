"""A table of all parameters and how they lie on a mesh: the sharding rules applied to a model, to be read by people."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from rich.table import Table

from looplm.model.functional import FunctionalLM


class Row(NamedTuple):
    """One parameter."""

    name: str
    """Path in the tree of parameters, dotted."""
    shape: tuple[int, ...]
    spec: jax.sharding.PartitionSpec
    bytes_per_device: int
    """Bytes of the stored (float32) parameter on a device; optimizer state and gradients come on top."""


def parameter_table(lm: FunctionalLM, mesh: jax.sharding.Mesh) -> list[Row]:
    """Make one row for every parameter of `lm` as it is laid out on `mesh`; allocates nothing."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(lm.abstract(mesh)):
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        rows.append(Row(".".join(str(key.key) for key in path), leaf.shape, leaf.sharding.spec, part))
    return rows


def totals(rows: Sequence[Row], mesh: jax.sharding.Mesh) -> str:
    """Write one line: how many parameters, on which mesh, and how much of them a device holds."""
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    held = sum(row.bytes_per_device for row in rows)
    return f"{sum(math.prod(row.shape) for row in rows):,} parameters on {axes}: {held / 2**20:,.1f} MiB on each device"


def as_text(rows: Sequence[Row]) -> Table:
    """Lay the rows out for the console."""
    table = Table("parameter", "shape", "spec", "bytes per device")
    for row in rows:
        spec = ", ".join(str(axis) for axis in row.spec)
        table.add_row(row.name, " x ".join(map(str, row.shape)), f"({spec})", f"{row.bytes_per_device:,}")
    return table
